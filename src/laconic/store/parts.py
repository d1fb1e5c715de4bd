"""Which bytes of a file are which tensor. The parts of a file cover it, so that it can be put together again.

safetensors   the header's tensors
.pt, .bin     the storages of PyTorch's zip files, named by the tensors that its pickle would build
.npy, .npz    arrays, where they are not compressed
other         one part
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from laconic.coding.safetensors import PREFIX, Placed, read_placed
from laconic.errors import CorruptFile
from laconic.store.arrays import read_npy
from laconic.store.zips import read_zip

SAFETENSORS = ".safetensors"


class Part(NamedTuple):
    """A run of bytes of a file: a tensor, or what lies between two.

    Attributes:
        start: first byte.
        size: bytes.
        dtype: as in safetensors; `U8` for what is no tensor.
        name: of the tensor; None for what is none.
        shape: of the tensor.
    """

    start: int
    size: int
    dtype: str = "U8"
    name: str | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Contents:
    """A file as parts.

    Attributes:
        kind: `safetensors`, `torch`, `npz`, `npy` or `other`.
        parts: in order, without gaps.
    """

    kind: str
    parts: tuple[Part, ...]


def read_contents(file: BinaryIO, size: int, what: str) -> Contents:
    """The parts of a file; what is in no known format is one part.

    Args:
        file: can be sought.
        size: its bytes.
        what: it is called, in messages: its path.

    Raises:
        CorruptFile: it is called `.safetensors` and is damaged.
    """

    def fetch(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    start = fetch(0, PREFIX + 1)
    if what.endswith(SAFETENSORS) or start[PREFIX:] == b"{":
        try:
            return covering("safetensors", read_placed(fetch, size, what), size)
        except CorruptFile:
            if what.endswith(SAFETENSORS):
                raise
    readers: tuple[tuple[bytes, Callable[[BinaryIO, int], tuple[str, dict[str, Placed]]]], ...] = (
        (b"PK\3\4", read_zip),
        (b"\x93NUMPY", read_npy),
    )
    for magic, read in readers:
        if start.startswith(magic):
            try:
                return covering(*read(file, size), size)
            except CorruptFile:  # of another kind than its first bytes say
                break
    return covering("other", {}, size)


def covering(kind: str, tensors: dict[str, Placed], size: int) -> Contents:
    """Tensors and what lies between them.

    Raises:
        CorruptFile: tensors overlap, or end behind the file.
    """
    named = [Part(t.start, t.size, t.dtype, name, t.shape) for name, t in tensors.items()]
    parts: list[Part] = []
    end = 0
    for part in sorted(named):
        if part.start < end or part.start + part.size > size:
            raise CorruptFile(f"tensor {part.name} does not lie in a place of its own")
        if part.start > end:
            parts.append(Part(end, part.start - end))
        parts.append(part)
        end = part.start + part.size
    if end < size or not parts:
        parts.append(Part(end, size - end))
    return Contents(kind, tuple(parts))
