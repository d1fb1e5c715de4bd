"""Files that are read once, from front to back: of a folder, alone, or from a pipe."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from laconic.coding.safetensors import PREFIX, read_placed
from laconic.errors import CorruptFile, UsageError
from laconic.store.manifest import SLAB, checked_path
from laconic.store.parts import Contents, Part, covering, read_contents

ENDLESS = 1 << 62  # bytes that a pipe may bring


@dataclass
class Input:
    """An open file that is read from front to back: part by part, each `SLAB` bytes at a time.

    Attributes:
        path: below what is stored.
        contents: its parts, as far as they are known.
        file: where the next bytes come from.
        executable: whether it may be run.
        endless: whether more may come behind the known parts.
        head: bytes that were read from `file` already.
    """

    path: str
    contents: Contents
    file: BinaryIO
    executable: bool = False
    endless: bool = False
    head: bytes = b""

    def parts(self) -> Iterator[Part]:
        """In order; the bytes of each are to be read before the next is asked for."""
        yield from self.contents.parts
        start = sum(part.size for part in self.contents.parts)
        while self.endless and (head := self._read(SLAB).tobytes()):
            self.head = head
            yield Part(start, len(head))
            start += len(head)

    def read(self, part: Part) -> Iterator[np.ndarray]:
        """The bytes of a part, uint8, `SLAB` at a time.

        Raises:
            CorruptFile: there are fewer than there were, or a pipe ends within a tensor.
        """
        for start in range(part.start, part.start + part.size, SLAB):
            size = min(SLAB, part.start + part.size - start)
            raw = self._read(size)
            if raw.size < size:
                raise CorruptFile(
                    f"{self.path}: {size} bytes expected at {start}, found {raw.size} (truncated?)"
                )
            yield raw

    def _read(self, size: int) -> np.ndarray:
        """The next (size,) bytes; fewer at the end."""
        out = np.empty(size, np.uint8)
        done = min(size, len(self.head))
        out[:done] = np.frombuffer(self.head[:done], np.uint8)
        self.head = self.head[done:]
        while done < size:
            got = self.file.readinto(out[done:].data)  # type: ignore[attr-defined]
            if not got:
                break
            done += got
        return out[:done]


def inputs_of(source: Path) -> list[tuple[str, Path]]:
    """(path below `source`, file) of everything in a folder, sorted; or the one file.

    Links are followed to files, not to folders.

    Raises:
        UsageError: there is nothing, or something that is no file.
    """
    if source.is_file():
        return [(checked_path(source.name), source)]
    if not source.is_dir():
        raise UsageError(f"{source}: no such file or folder")
    found = []
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder) / name
            if not path.is_file():
                raise UsageError(f"{path}: neither a file nor a link to one")
            found.append((checked_path(path.relative_to(source).as_posix()), path))
    if not found:
        raise UsageError(f"{source}: the folder is empty")
    return sorted(found)


@contextmanager
def opened(name: str, path: Path, contents: Contents | None = None) -> Iterator[Input]:
    """The file at `path`, called `name`; its `contents` where they are known already.

    Raises:
        CorruptFile: it is called `.safetensors` and is damaged.
    """
    with path.open("rb", buffering=0) as file:
        if contents is None:
            contents = read_contents(file, path.stat().st_size, str(path))
        file.seek(0)
        yield Input(name, contents, file, os.access(path, os.X_OK))


def piped(file: BinaryIO, name: str) -> Input:
    """What comes from a pipe: safetensors, of which the header comes first, or anything."""
    head = b""

    def fetch(start: int, length: int) -> bytes:
        nonlocal head
        while len(head) < start + length:
            part = file.read(start + length - len(head))
            if not part:
                break
            head += part
        return head[start : start + length]

    contents = Contents("other", ())
    if fetch(0, PREFIX + 1)[PREFIX:] == b"{":
        try:
            tensors = read_placed(fetch, ENDLESS, name)
            end = max((t.start + t.size for t in tensors.values()), default=len(head))
            contents = covering("safetensors", tensors, end)
        except CorruptFile:
            pass
    return Input(name, contents, file, endless=True, head=head)
