"""A directory that laconic wrote, module by module."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.exchange.uniform import UniformLayer
from laconic.hf import METHOD
from laconic.models.huggingface import build_skeleton, load_config
from laconic.models.memory import MODULE_CONFIG
from laconic.models.safetensors import find_shards, read_headers, read_tensor
from laconic.models.source import copy_side_files
from laconic.report.points import REPORT_FILE
from laconic.tensors import Dense
from laconic.tensors.modules import is_conv1d
from laconic.tensors.stored import Record, decode_record


class CompressedFolder:
    """What `laconic compress` wrote of a Hugging Face model; read one module at a time.

    Args:
        folder: the directory.

    Attributes:
        folder: the directory.
        config: `config.json`, without what it says of the compression.
        skeleton: the model on the meta device.

    Raises:
        UnsupportedModel: laconic did not write it, or it is not a Hugging Face model as it came (layers
            were dropped, a plain module).
        CorruptFile: its files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / MODULE_CONFIG).is_file():
            raise UnsupportedModel(
                f"{folder} is a plain module, which other tools do not know: only Hugging Face models "
                "can be exported"
            )
        hf_config = load_config(folder)
        try:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            made = self.config.pop("quantization_config", None) or {}
            method = made.get("quant_method")
            self._modules = [str(path) for path in made.get("modules", ())]
        except (ValueError, AttributeError, TypeError) as error:
            raise CorruptFile(f"{folder / 'config.json'}: cannot be read: {error!r}") from error
        if method != METHOD:
            raise UnsupportedModel(
                f"{folder} was not compressed by laconic (quant_method is {method}): compress it first, as "
                "with laconic compress MODEL --method gptq"
            )
        if made.get("edits"):
            raise UnsupportedModel(
                f"{folder} has layers dropped, which the architecture {hf_config.model_type} of other "
                "tools does not allow"
            )
        self.skeleton: nn.Module = build_skeleton(hf_config)
        self._entries = read_headers(find_shards(folder))

    def parts(self) -> Iterator[UniformLayer | tuple[str, Tensor]]:
        """Every compressed layer, and every other tensor with its name.

        Raises:
            UnsupportedModel: a layer is not codes on a uniform grid; the message says what it is.
        """
        for path, module, blobs in self._modules_with_blobs():
            for name, value in blobs.items():
                if isinstance(value, Tensor):
                    yield name, value
                elif isinstance(value.weight, Dense) and value.transform is None:
                    yield name, value.weight.dense()
                elif isinstance(module, nn.Linear | nn.Embedding) or is_conv1d(module):
                    yield UniformLayer.of(path, value, module)
                else:
                    kind = type(module).__name__
                    raise UnsupportedModel(f"{path} is a compressed {kind}, and not a linear layer")
        inside = tuple(f"{path}." for path in self._modules)
        for name, entry in self._entries.items():
            if not name.startswith(inside):
                yield name, read_tensor(entry)

    def records(self) -> Iterator[tuple[str, nn.Module, Record]]:
        """Path, module and record of everything that is compressed."""
        for path, module, blobs in self._modules_with_blobs():
            yield from ((path, module, v) for v in blobs.values() if isinstance(v, Record))

    def _modules_with_blobs(self) -> Iterator[tuple[str, nn.Module, dict[str, Record | Tensor]]]:
        for path in self._modules:
            try:
                module = self.skeleton.get_submodule(path)
            except AttributeError as error:
                raise CorruptFile(f"config.json names {path}, which the model has not") from error
            names = [name for name in self._entries if name.startswith(f"{path}.")]
            yield path, module, {name: self._read(name, f"{path}.bias") for name in names}

    def _read(self, name: str, bias: str) -> Record | Tensor:
        entry = self._entries[name]
        if entry.dtype != "U8" or name == bias:
            return read_tensor(entry)
        try:
            return decode_record(read_tensor(entry).numpy())
        except CorruptFile as error:
            raise CorruptFile(f"{name}: {error}") from error

    def save_config(self, folder: Path, quantization: dict[str, Any]) -> None:
        """Writes everything but the weights, with another `quantization_config`."""
        copy_side_files(self.folder, folder)
        (folder / REPORT_FILE).unlink(missing_ok=True)
        config = self.config | {"quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
