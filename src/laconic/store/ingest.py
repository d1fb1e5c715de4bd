"""A file on its way into objects."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from laconic.store.inputs import Input
from laconic.store.manifest import SLAB, SMALL, StoredFile, StoredPart
from laconic.store.parts import Part

Named = tuple[bytes, np.ndarray]  # an object: its digest and its bytes


class Fresh(NamedTuple):
    """Bytes that are to be an object.

    Attributes:
        digest: its name.
        raw: (N,) uint8.
        part: the tensor that they are of; None if they are of the rest.
        number: which object of the tensor.
    """

    digest: bytes
    raw: np.ndarray
    part: Part | None = None
    number: int = 0

    @property
    def dtype(self) -> str | None:
        """Of the tensor."""
        return None if self.part is None else self.part.dtype


class Ingest:
    """Cuts a file into objects, reading it once.

    Args:
        file: open, at its start.
        is_new: whether an object of that digest has to be made; it is asked once for each.
    """

    def __init__(self, file: Input, is_new: Callable[[bytes], bool]) -> None:
        self._file, self._is_new = file, is_new
        self._digest, self._parts, self._rest = blake3(), list[StoredPart](), _Rest()

    def fresh(self) -> Iterator[Fresh]:
        """The objects that have to be made."""
        for part in self._file.parts():
            names: list[bytes] = []
            for raw in self._file.read(part):
                self._digest.update(raw.data)
                if part.name is None or part.size < SMALL:
                    yield from self._new(self._rest.add(raw))
                else:
                    names.append(blake3(raw.data).digest())
                    yield from self._new([(names[-1], raw)], part, len(names) - 1)
            self._parts.append(StoredPart(part, tuple(names)))
        yield from self._new(self._rest.close())

    def stored(self) -> StoredFile:
        """What the manifest says of the file, once all of `fresh` was taken."""
        return StoredFile(
            self._file.path, sum(part.size for part, _ in self._parts), self._digest.digest(),
            self._file.contents.kind, tuple(self._parts), tuple(self._rest.names),
            self._file.executable,
        )  # fmt: skip

    def _new(
        self, named: Iterable[Named], part: Part | None = None, number: int = 0
    ) -> Iterator[Fresh]:
        for name, raw in named:
            if self._is_new(name):
                yield Fresh(name, raw, part, number)


class _Rest:
    """What has no object of its own, put behind one another and cut into objects."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self._held: list[np.ndarray] = []
        self._size = 0

    def add(self, raw: np.ndarray) -> Iterator[Named]:
        """The objects that are full now."""
        while self._size + raw.size >= SLAB:
            missing = SLAB - self._size
            self._held.append(raw[:missing])
            raw = raw[missing:]
            yield self._cut()
        self._held.append(raw)
        self._size += raw.size

    def close(self) -> Iterator[Named]:
        """The last object."""
        if self._size:
            yield self._cut()

    def _cut(self) -> Named:
        raw = np.concatenate(self._held)
        self.names.append(blake3(raw.data).digest())
        self._held, self._size = [], 0
        return self.names[-1], raw
