"""Safetensors files read with pread: single tensors on demand, no memory map, no trust.

A memory map counts every page that was touched as resident and turns a truncated file into a bus
error; pread does neither.
"""

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.tensors.dtypes import BY_NAME, from_raw

MAX_HEADER = 100 << 20  # as the safetensors library


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
    size = path.stat().st_size
    with path.open("rb") as file:
        head = os.pread(file.fileno(), 8, 0)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, max(0, size - 8)):
            raise CorruptFile(f"{path}: no safetensors file, or truncated in its header")
        text = os.pread(file.fileno(), length, 8)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {name: _entry(path, info, 8 + length) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"{path}: the safetensors header cannot be read: {error!r}") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start < end:
            raise CorruptFile(f"{path}: tensor {name} overlaps the one before it")
        end = entry.start + entry.size
        if end > size:
            raise CorruptFile(
                f"{path}: tensor {name} ends at byte {end}, the file has {size} (truncated; "
                "download or copy it again)"
            )
    return entries


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


def _entry(path: Path, info: dict[str, Any], base: int) -> Entry:
    start, stop = info["data_offsets"]
    shape = tuple(info["shape"])
    dtype = str(info["dtype"])
    if any(type(number) is not int for number in (start, stop, *shape)):
        raise TypeError("offsets and shapes are whole numbers")
    if dtype not in BY_NAME:
        raise ValueError(f"dtype {dtype!r} is not known")
    expected = int(np.prod(shape, dtype=object)) * BY_NAME[dtype].itemsize
    if start < 0 or min(shape, default=0) < 0 or stop - start != expected:
        raise ValueError(f"offsets {start}..{stop} do not fit {dtype} {list(shape)}")
    return Entry(path, dtype, shape, base + start, stop - start)
