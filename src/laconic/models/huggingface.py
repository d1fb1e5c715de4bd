"""Hugging Face directories as model sources.

With `laconic.hf`, the only place that knows the inside of transformers: skeletons on the meta
device, and the names of a checkpoint against those of the model in memory.
"""

import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import UnsupportedModel
from laconic.models.safetensors import Entry, find_shards, read_headers, read_tensor
from laconic.models.source import ModelSource, copy_side_files
from laconic.tensors.dtypes import BY_NAME


class HuggingFaceSource(ModelSource):
    """A directory with `config.json` and safetensors; tensors are read when they are asked for.

    All names are those of the model in memory; where a checkpoint spells them otherwise (experts
    one by one, older module names), transformers' own conversions are applied.

    Args:
        folder: the directory.

    Raises:
        UnsupportedModel: no such directory, no config, an unknown architecture, missing tensors, or
            a model that is compressed already.
        CorruptFile: damaged or truncated weight files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self.name = str(folder)
        self.config = load_config(folder)
        if getattr(self.config, "quantization_config", None) is not None:
            method = dict(self.config.quantization_config).get("quant_method")
            raise UnsupportedModel(
                f"{folder} is compressed already (by {method}); start from the dense model, with a "
                "--recipe of both methods if two are wanted"
            )
        self.skeleton = build_skeleton(self.config)
        self._groups = Checkpoint(self.skeleton, read_headers(find_shards(folder)))
        self._settle_ties()
        self._check_complete()

    def sizes(self) -> dict[str, int]:
        return self._groups.sizes

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        return self._groups.read(names)

    def fingerprint(self) -> str | None:
        files = [*find_shards(self.folder), self.folder / "config.json"]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return json.dumps([str(self.folder.resolve()), stats])

    def save_config(self, folder: Path, quantization: dict[str, Any]) -> None:
        copy_side_files(self.folder, folder)
        config = json.loads((self.folder / "config.json").read_text())
        config["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def _settle_ties(self) -> None:
        """A file may hold both of two tied tensors, or only the one that is not the table's.

        As transformers does: equal ones are one, different ones are not tied.
        """
        ties = getattr(self.skeleton, "all_tied_weights_keys", {})
        for tied, owner in list(ties.items()):
            if tied not in self.sizes():
                continue
            if owner not in self.sizes():
                self._groups.rename(tied, owner)
            elif torch.equal(self.read([tied])[tied], self.read([owner])[owner]):
                self._groups.drop(tied)
            else:
                ties.pop(tied)

    def _check_complete(self) -> None:
        tied = getattr(self.skeleton, "all_tied_weights_keys", {})
        expected = set(self.skeleton.state_dict()) - set(tied)
        missing = sorted(expected - set(self.sizes()))
        if missing:
            raise UnsupportedModel(
                f"{self.name}: {len(missing)} tensors that {type(self.skeleton).__name__} needs are "
                f"not in the files, such as {missing[0]}"
            )


def load_config(folder: Path) -> Any:
    """The transformers configuration in `folder`; `UnsupportedModel` if there is none it knows."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UnsupportedModel(f"{folder}: no config.json, so no Hugging Face model")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many types here
        raise UnsupportedModel(f"{folder}/config.json: {_first_line(error)}") from error


def model_class(config: Any) -> Any:
    """The transformers class that `config.architectures` names."""
    import transformers

    names = getattr(config, "architectures", None) or []
    for name in names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise UnsupportedModel(
        f"config.json names the architectures {names}: transformers has none of them"
    )


def build_skeleton(config: Any) -> nn.Module:
    """The model of `config` without memory for its weights.

    Buffers that no file holds (rotary tables, position numbers) have their values.
    """
    with torch.device("meta"):
        skeleton: Any = model_class(config)(config)
    for owner in skeleton.modules():
        names = [n for n in owner._non_persistent_buffers_set if owner._buffers[n] is not None]
        for name in names:
            owner._buffers[name] = torch.zeros_like(owner._buffers[name], device="cpu")
        if names:
            skeleton._init_weights(owner)
    module: nn.Module = skeleton.eval()
    return module


class Checkpoint:
    """Tensors on disk under the names that the model in memory gives them."""

    def __init__(self, model: nn.Module, entries: dict[str, Entry]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        self._model = model
        self._entries = entries
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._converters = {p: c for c in converters for p in c.source_patterns}
        known = model.state_dict()
        prefix = getattr(model, "base_model_prefix", None)
        self._groups: dict[
            str, list[tuple[str | None, str]]
        ] = {}  # target: (pattern, name on disk)
        for key in sorted(entries, key=dot_natural_key):
            target, pattern = rename_source_key(key, renamings, converters, prefix, known)
            if target not in known and key in known:
                target, pattern = key, None
            self._groups.setdefault(target, []).append((pattern, key))
        self._owner: dict[str, str] = {}  # name in memory -> its group
        self.sizes: dict[str, int] = {}
        for target, members in self._groups.items():
            names = self._targets(target, members[0][0])
            size = sum(entries[key].size for _, key in members)
            for name in names:
                shape = known[name].shape if name in known else None
                itemsize = BY_NAME[entries[members[0][1]].dtype].itemsize
                self._owner[name] = target
                self.sizes[name] = (
                    size if len(names) == 1 or shape is None else shape.numel() * itemsize
                )

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        wanted = set(names)
        tensors: dict[str, Tensor] = {}
        for target in dict.fromkeys(self._owner[name] for name in names):
            for name, tensor in self._read_group(target).items():
                if name in wanted:
                    tensors[name] = tensor
        return tensors

    def drop(self, name: str) -> None:
        """Forgets the tensor `name`."""
        del self.sizes[name], self._owner[name]

    def rename(self, name: str, other: str) -> None:
        """Gives the tensor `name`, which no conversion makes, another name."""
        self.sizes[other], self._owner[other] = self.sizes.pop(name), other
        self._groups[other] = self._groups.pop(self._owner.pop(name))

    def _targets(self, target: str, pattern: str | None) -> list[str]:
        """All names in memory that the group of `target` becomes."""
        if pattern is None:
            return [target]
        patterns = self._converters[pattern].target_patterns
        return [target.replace(patterns[0], other, 1) for other in patterns]

    def _read_group(self, target: str) -> dict[str, Tensor]:
        members = self._groups[target]
        if members[0][0] is None:
            return {target: read_tensor(self._entries[members[0][1]])}
        converter = deepcopy(self._converters[members[0][0]])
        for pattern, key in members:
            converter.add_tensor(target, key, pattern, read_tensor(self._entries[key]))
        converted = converter.convert(
            target, model=self._model, config=getattr(self._model, "config", None)
        )
        return {name: t[0] if isinstance(t, list) else t for name, t in converted.items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
