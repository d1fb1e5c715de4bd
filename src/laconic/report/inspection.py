"""What a model directory or weight file holds, tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.measure.resources import stored_bytes
from laconic.models.memory import MODULE_CONFIG
from laconic.models.safetensors import Entry, find_shards, read_header, read_headers, read_tensor
from laconic.tensors.stored import decode_record


def inspect_path(path: Path) -> dict[str, Any]:
    """Formats, shapes and bytes of every tensor below `path`.

    Raises:
        UnsupportedModel: nothing to inspect is there.
        CorruptFile: a file is damaged; the message names the tensor.
    """
    if path.is_file():
        entries, config, stored = read_header(path), {}, path.stat().st_size
    elif path.is_dir():
        entries, config, stored = read_headers(find_shards(path)), _config(path), stored_bytes(path)
    else:
        raise UnsupportedModel(
            f"{path} is not there; expected a model directory or a safetensors file"
        )
    modules = tuple(f"{module}." for module in config.get("modules", ()))
    rows = [_row(name, entry, name.startswith(modules)) for name, entry in entries.items()]
    totals = {
        key: sum(row[key] for row in rows) for key in ("weights", "resident_bytes", "dense_bytes")
    }
    return {
        "path": str(path),
        "recipe": config.get("recipe", []),
        "stored_bytes": stored,
        **totals,
        "tensors": rows,
    }


def _config(folder: Path) -> dict[str, Any]:
    """The `quantization_config` in `folder`, if it is laconic's."""
    for name in (MODULE_CONFIG, "config.json"):
        if (folder / name).is_file():
            try:
                config = json.loads((folder / name).read_text()).get("quantization_config") or {}
                return dict(config) if config.get("quant_method") == "laconic" else {}
            except (ValueError, AttributeError, TypeError) as error:
                raise CorruptFile(f"{folder / name}: cannot be read: {error!r}") from error
    return {}


def _row(name: str, entry: Entry, compressed: bool) -> dict[str, Any]:
    if compressed and entry.dtype == "U8" and len(entry.shape) == 1:
        try:
            record = decode_record(read_tensor(entry).numpy())
        except CorruptFile as error:
            raise CorruptFile(f"{name}: {error}") from error
        value = record.weight
        shape, kind, resident = list(value.shape), record.format, record.resident_bytes
        dense = value.numel * value.dtype.itemsize
    else:
        shape, kind, resident, dense = (
            list(entry.shape),
            entry.dtype.lower(),
            entry.size,
            entry.size,
        )
    return {
        "name": name,
        "format": kind,
        "shape": shape,
        "weights": int(np.prod(shape, dtype=np.int64)),
        "stored_bytes": entry.size,
        "resident_bytes": resident,
        "dense_bytes": dense,
    }
