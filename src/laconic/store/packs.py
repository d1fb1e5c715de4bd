"""Packs: files of many objects each, written once.

A pack is an indexed file (`laconic.coding.framing`), one section for each object: should the index of a
store be lost, its packs still say what they hold. An object is read by where it lies.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from laconic.coding.framing import START, IndexedWriter
from laconic.errors import CorruptFile

SUFFIX = ".lac"
FULL = 1 << 30  # bytes from which the next object goes into another pack


class Place(NamedTuple):
    """Where an object is.

    Attributes:
        pack: its name.
        start: first byte in the pack.
        length: bytes.
    """

    pack: str
    start: int
    length: int


class PackWriter(Protocol):
    """A pack that is being written."""

    name: str

    def add(self, digest: bytes, blob: bytes) -> Place:
        """Appends an object."""
        ...

    def close(self) -> int:
        """Makes the pack durable under its name; its bytes."""
        ...

    def abandon(self) -> None:
        """Leaves nothing."""
        ...


class Packs(Protocol):
    """Where packs are."""

    def writer(self) -> PackWriter:
        """A new pack."""
        ...

    def read(self, place: Place) -> bytes:
        """An object; `FileNotFoundError` if there is no such pack."""
        ...

    def names(self) -> Iterator[tuple[str, float]]:
        """All packs, complete or not, and when they were last written to."""
        ...

    def remove(self, name: str) -> None:
        """Deletes a pack, if it is there, complete or not."""
        ...


class FolderPacks:
    """Packs in a folder: written under a hidden name, flushed to the disk, and renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def writer(self) -> "FolderPackWriter":
        """A new pack."""
        return FolderPackWriter(self._folder)

    def read(self, place: Place) -> bytes:
        """An object.

        Raises:
            CorruptFile: the pack ends before.
        """
        with (self._folder / place.pack).open("rb") as file:
            blob = os.pread(file.fileno(), place.length, place.start)
        if len(blob) < place.length:
            raise CorruptFile(f"{self._folder / place.pack}: truncated")
        return blob

    def names(self) -> Iterator[tuple[str, float]]:
        """All packs, complete or not, and when they were last written to."""
        for entry in list(os.scandir(self._folder)):
            try:
                yield entry.name.removeprefix("."), entry.stat().st_mtime
            except FileNotFoundError:  # renamed or removed meanwhile
                continue

    def remove(self, name: str) -> None:
        """Deletes a pack, if it is there, complete or not."""
        for path in (self._folder / name, self._folder / f".{name}"):
            path.unlink(missing_ok=True)


class FolderPackWriter:
    """A pack that is being written in a folder.

    Attributes:
        name: of the pack.
        path: where it is once it is closed.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"{secrets.token_hex(16)}{SUFFIX}"
        self.path, self._hidden = folder / self.name, folder / f".{self.name}"
        self._file = self._hidden.open("xb")
        self._writer = IndexedWriter(self._file)
        self._end = START

    def add(self, digest: bytes, blob: bytes) -> Place:
        """Appends an object."""
        self._writer.add(digest.hex(), blob)
        place = Place(self.name, self._end, len(blob))
        self._end += len(blob)
        return place

    def close(self) -> int:
        """Flushes the pack and its name to the disk; its bytes."""
        self._writer.close(laconic_pack=1)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._hidden.rename(self.path)
        sync_folder(self.path.parent)
        return self._writer.size

    def abandon(self) -> None:
        """Leaves nothing, also where it was closed before."""
        self._file.close()
        self._hidden.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
