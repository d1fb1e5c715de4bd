"""Safetensors files written tensor by tensor, with the bytes that the safetensors library would write.

The library takes all tensors of a file at once; here they may lie in other files, and pass through a
buffer of a few megabytes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from laconic.errors import CorruptFile
from laconic.models.safetensors import Entry
from laconic.tensors.dtypes import name_of, to_raw

METADATA = {"format": "pt"}
CHUNK = 4 << 20
#: The library's order of dtypes within a file: wide ones first, so that all are aligned.
ORDER = [
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0",
    "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
]  # fmt: skip


def write_file(path: Path, tensors: Mapping[str, Tensor] | Mapping[str, Entry]) -> None:
    """Writes `tensors`, in memory or in other safetensors files, to `path`.

    Raises:
        CorruptFile: a file that a tensor lies in is shorter than its header said.
        OSError: the disk is full, or whatever else happens to files.
    """
    described = {name: _describe(tensor) for name, tensor in tensors.items()}
    names = sorted(described, key=lambda name: (ORDER.index(described[name][0]), name))
    header: dict[str, object] = {"__metadata__": METADATA}
    offset = 0
    for name in names:
        dtype, shape, size = described[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name]
            if isinstance(tensor, Tensor):
                file.write(to_raw(tensor).data)
            else:
                file.flush()
                _copy(tensor, file.fileno())
                file.seek(0, os.SEEK_END)


def _describe(tensor: Tensor | Entry) -> tuple[str, list[int], int]:
    if isinstance(tensor, Tensor):
        return name_of(tensor.dtype), list(tensor.shape), tensor.nbytes
    return tensor.dtype, list(tensor.shape), tensor.size


def _copy(entry: Entry, target: int) -> None:
    """Appends the bytes of `entry` to the file `target`."""
    os.lseek(target, 0, os.SEEK_END)
    with entry.path.open("rb") as source:
        done = 0
        while done < entry.size:
            part = os.pread(source.fileno(), min(CHUNK, entry.size - done), entry.start + done)
            if not part:
                raise CorruptFile(f"{entry.path}: truncated while it was read")
            view = memoryview(part)
            while view:
                view = view[os.write(target, view) :]
            done += len(part)
