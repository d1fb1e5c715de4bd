"""Safetensors files read with pread: single tensors on demand, no memory map, no trust.

A memory map counts every page that was touched as resident and turns a truncated file into a bus
error; pread does neither.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from laconic.coding.safetensors import read_placed
from laconic.errors import CorruptFile, UnsupportedModel
from laconic.tensors.dtypes import BY_NAME, from_raw


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        path: the file.
        dtype: safetensors name.
        shape: of the tensor.
        start: first byte in the file.
        size: bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file.

    Raises:
        CorruptFile: no safetensors file, truncated, or entries that do not fit the file.
    """
    with path.open("rb") as file:
        placed = read_placed(
            lambda start, size: os.pread(file.fileno(), size, start), path.stat().st_size, str(path)
        )
    strange = [name for name, entry in placed.items() if entry.dtype not in BY_NAME]
    if strange:
        raise CorruptFile(
            f"{path}: torch has no dtype {placed[strange[0]].dtype} of tensor {strange[0]}"
        )
    return {name: Entry(path, *entry) for name, entry in placed.items()}


def read_tensor(entry: Entry) -> Tensor:
    """The tensor at `entry`, in memory of its own."""
    with entry.path.open("rb") as file:
        raw = np.empty(entry.size, np.uint8)
        done = 0
        while done < entry.size:
            got = os.preadv(file.fileno(), [raw[done:].data], entry.start + done)
            if got == 0:
                raise CorruptFile(f"{entry.path}: truncated while it was read")
            done += got
    return from_raw(raw, entry.dtype, entry.shape, copy=False)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, by its index where there is one.

    Raises:
        UnsupportedModel: there are none, or the index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            names = sorted({Path(name).name for name in weight_map.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"{index}: cannot be read: {error!r}") from error
        shards = [folder / name for name in names]
    else:
        shards = sorted(folder.glob("*.safetensors"))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UnsupportedModel(f"{folder}: the index names {missing[0]}, which is not there")
    if not shards:
        other = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        hint = f" ({other[0]} is a pickle: convert it to safetensors first)" if other else ""
        raise UnsupportedModel(f"{folder}: no *.safetensors file{hint}")
    return shards


def read_headers(shards: Iterable[Path]) -> dict[str, Entry]:
    """The tensors of all `shards`; raises `CorruptFile` if two hold the same name."""
    entries: dict[str, Entry] = {}
    for shard in shards:
        for name, entry in read_header(shard).items():
            if name in entries:
                raise CorruptFile(f"{name} is in {entries[name].path.name} and in {shard.name}")
            entries[name] = entry
    return entries
