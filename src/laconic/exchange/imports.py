"""`import_model`: a checkpoint that another tool quantized, as a model that laconic opens."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.exchange.compressed_tensors import CompressedTensorsReader
from laconic.exchange.gptq import GPTQReader
from laconic.exchange.uniform import UniformLayer
from laconic.hf import quantization_config
from laconic.measure.resources import stored_bytes
from laconic.models.directory import DirectorySink
from laconic.models.huggingface import Checkpoint, build_skeleton, load_config
from laconic.models.safetensors import Entry, find_shards, read_headers, read_tensor
from laconic.models.source import copy_side_files
from laconic.tensors.modules import is_conv1d

READERS: dict[str, type[CompressedTensorsReader] | type[GPTQReader]] = {
    "compressed-tensors": CompressedTensorsReader,
    "gptq": GPTQReader,
}


@dataclass(frozen=True)
class Import:
    """What `import_model` did.

    Attributes:
        path: what was imported.
        method: which tool's format it had.
        out: the directory.
        layers: how many are codes there.
        before_bytes: of the weight files that were read.
        stored_bytes: of those that were written.
    """

    path: str
    method: str
    out: str
    layers: int
    before_bytes: int
    stored_bytes: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def import_model(path: str | Path, out: str | Path, *, overwrite: bool = False) -> Import:
    """Opens a compressed-tensors (`pack-quantized`) or GPTQ checkpoint and writes it as laconic's.

    Codes, scales, zero points and orders of columns stay what they are, so that the model computes the
    same; entropy coding makes its files smaller.

    Args:
        path: the checkpoint's directory.
        out: the directory to make.
        overwrite: whether what is there is replaced, once the new one is complete.

    Raises:
        UnsupportedModel: it is of another format, or has parts that laconic cannot say.
        CorruptFile: its files are damaged, or its tensors do not fit together.
        OutputExists: `out` is there.
    """
    folder, out = Path(path), Path(out)
    hf_config = load_config(folder)
    config = _read_config(folder)
    found = config.pop("quantization_config", None) or config.pop("compression_config", None) or {}
    method = str(found.get("quant_method"))
    if method not in READERS:
        raise UnsupportedModel(
            f"{folder} is of no format that can be imported (quant_method is {method}); known: "
            f"{', '.join(READERS)}"
        )
    hf_config.quantization_config = None
    skeleton = build_skeleton(hf_config)
    reader = READERS[method](found)
    packed, rest = _sorted(read_headers(find_shards(folder)), reader.suffixes)
    checkpoint = Checkpoint(skeleton, rest)
    _check_complete(skeleton, checkpoint, packed)

    def save_config(target: Path, modules: list[str]) -> None:
        copy_side_files(folder, target)
        steps = [{"method": f"import {method}", "settings": {}}]
        full = config | {"quantization_config": quantization_config(modules, steps)}
        (target / "config.json").write_text(json.dumps(full, indent=2, sort_keys=True) + "\n")

    with DirectorySink(out, save_config, overwrite=overwrite) as sink:
        for layer in _layers(skeleton, reader, packed):
            dtype = skeleton.get_submodule(layer.path).get_parameter("weight").dtype
            sink.put_module(layer.path, {"weight": layer.record(dtype)})
        for name in checkpoint.sizes:
            sink.put_tensor(name, checkpoint.read([name])[name])
    before = sum(entry.size for entries in packed.values() for entry in entries.values())
    before += sum(entry.size for entry in rest.values())
    return Import(str(path), method, str(out), len(packed), before, stored_bytes(out))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"{folder / 'config.json'}: cannot be read: {error!r}") from error


def _sorted(
    entries: Mapping[str, Entry], suffixes: tuple[str, ...]
) -> tuple[dict[str, dict[str, Entry]], dict[str, Entry]]:
    """Tensors of packed layers by path and name, and the others by name."""
    packed: dict[str, dict[str, Entry]] = {}
    rest = {}
    for name, entry in entries.items():
        path, _, last = name.rpartition(".")
        if last in suffixes:
            packed.setdefault(path, {})[last] = entry
        else:
            rest[name] = entry
    return packed, rest


def _layers(
    skeleton: nn.Module, reader: Any, packed: Mapping[str, Mapping[str, Entry]]
) -> Iterator[UniformLayer]:
    for path, entries in packed.items():
        tensors: dict[str, Tensor] = {name: read_tensor(entry) for name, entry in entries.items()}
        layer: UniformLayer = reader.layer(path, tensors)
        module = skeleton.get_submodule(path)
        shape = module.get_parameter("weight").shape
        expected = torch.Size(reversed(shape)) if is_conv1d(module) else shape
        if layer.codes.shape != expected:
            raise CorruptFile(
                f"{path}: codes of {tuple(layer.codes.shape)} where {tuple(expected)} are expected"
            )
        yield layer


def _check_complete(skeleton: nn.Module, checkpoint: Checkpoint, packed: Mapping[str, Any]) -> None:
    """Raises `UnsupportedModel` where tensors belong to no layer, or layers have no tensors."""
    for path in packed:
        try:
            module = skeleton.get_submodule(path)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear) and (module is None or not is_conv1d(module)):
            what = "not in the model" if module is None else f"a {type(module).__name__}"
            raise UnsupportedModel(f"{path} is packed, but is {what}: only linear layers can be")
    tied = set(getattr(skeleton, "all_tied_weights_keys", {}))
    held = {*checkpoint.sizes, *tied, *(f"{path}.weight" for path in packed)}
    missing = sorted(set(skeleton.state_dict()) - held)
    if missing:
        raise CorruptFile(f"the weight files lack {len(missing)} tensors, such as {missing[0]}")
