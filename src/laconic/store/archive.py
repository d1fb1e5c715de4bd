"""A file, or a folder of files, in one file: what `laconic pack` writes.

An indexed file (`laconic.coding.framing`): one section for each object, named by its digest, then the
manifest. Equal objects are there once. It is written from front to back, and read anywhere.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard
from blake3 import blake3

from laconic.coding.blocks import ENGINES
from laconic.coding.framing import IndexedReader, IndexedWriter
from laconic.coding.zstd import unzstd_up_to
from laconic.errors import CorruptFile, UsageError
from laconic.store import manifest, objects
from laconic.store.inputs import Input
from laconic.store.manifest import SLAB, SMALL, Run, StoredFile, StoredPart
from laconic.store.parts import Part
from laconic.store.pipeline import in_order

MANIFEST = "manifest"
SUFFIX = ".lac"
MAX_MANIFEST = 1 << 28  # bytes
CACHED = 4  # objects that a reader keeps as they were


Named = tuple[bytes, np.ndarray]  # an object: its digest and its bytes


class Fresh(NamedTuple):
    """Bytes that are to be an object; `dtype` is None where they are of no tensor."""

    digest: bytes
    raw: np.ndarray
    dtype: str | None


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


class ArchiveWriter:
    """Packs files, one after the other.

    Args:
        out: where the archive goes; nothing is sought, so a pipe will do.
        engine: `huffman` (fast) or `rans` (small).
        threads: that encode; the result does not depend on it.

    Attributes:
        files: that were added.

    Raises:
        UsageError: an unknown engine.
    """

    def __init__(self, out: BinaryIO, *, engine: str = "huffman", threads: int = 1) -> None:
        if engine not in ENGINES:
            raise UsageError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
        self._writer, self._engine, self._threads = IndexedWriter(out), engine, threads
        self.files: list[StoredFile] = []
        self._written: set[bytes] = set()

    def add(self, file: Input) -> StoredFile:
        """Packs one file; of objects that are there already only the name."""
        digest, parts = blake3(), list[StoredPart]()
        rest = _Rest()

        def fresh() -> Iterator[Fresh]:
            for part in file.parts():
                names = []
                for raw in file.read(part):
                    digest.update(raw.data)
                    if part.name is None or part.size < SMALL:
                        yield from self._fresh(rest.add(raw), None)
                    else:
                        names.append(blake3(raw.data).digest())
                        yield from self._fresh([(names[-1], raw)], part.dtype)
                parts.append(StoredPart(part, tuple(names)))
            yield from self._fresh(rest.close(), None)

        for name, blob in in_order(self._encode, fresh(), self._threads):
            self._writer.add(name.hex(), blob)
        added = StoredFile(
            file.path, sum(stored.part.size for stored in parts), digest.digest(),
            file.contents.kind, tuple(parts), tuple(rest.names), file.executable,
        )  # fmt: skip
        self.files.append(added)
        return added

    def _fresh(self, named: Iterable[Named], dtype: str | None) -> Iterator[Fresh]:
        """Those that are not written yet."""
        for name, raw in named:
            if name not in self._written:
                self._written.add(name)
                yield Fresh(name, raw, dtype)

    def close(self, *, folder: bool) -> int:
        """Writes the manifest; the stream stays open.

        Args:
            folder: whether the files are those of a folder.

        Returns:
            Bytes of the archive.
        """
        plain = manifest.to_bytes(self.files)
        self._writer.add(MANIFEST, zstandard.ZstdCompressor(level=9).compress(plain))
        self._writer.close(laconic_archive=1, folder=folder)
        return self._writer.size

    def _encode(self, fresh: Fresh) -> tuple[bytes, bytes]:
        return fresh.digest, objects.encode(fresh.raw, fresh.dtype, self._engine)


class Archive:
    """Reads an archive, all of it or any bytes of it; threads may share it.

    Args:
        source: its path, or its bytes.

    Attributes:
        files: by path.
        is_folder: whether they are those of a folder; otherwise there is one.

    Raises:
        CorruptFile: no archive, truncated, or its index or manifest is damaged.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._reader = IndexedReader(source)
        if MANIFEST not in self._reader.names():
            raise CorruptFile("laconic file: it is no archive: a manifest is missing")
        packed = np.frombuffer(self._reader.read(MANIFEST), np.uint8)
        plain = unzstd_up_to(packed, MAX_MANIFEST, MANIFEST).tobytes()
        self.files: Mapping[str, StoredFile] = {f.path: f for f in manifest.from_bytes(plain)}
        self.is_folder = bool(self._reader.metadata.get("folder"))
        if not self.is_folder and len(self.files) != 1:
            raise CorruptFile(f"manifest: one file is expected, found {len(self.files)}")
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def stored_bytes(self, digest: bytes) -> int:
        """What an object takes in the archive."""
        return self._reader.length(digest.hex())

    def kind_of(self, digest: bytes) -> str:
        """How an object is stored: `raw`, `block` or `zstd`."""
        return objects.kind_of(self._reader.head(digest.hex(), 1))

    def chunks(self, path: str, *, threads: int = 1) -> Iterator[np.ndarray]:
        """The bytes of a file, from front to back.

        Raises:
            CorruptFile: an object, or the whole, is not what was packed; some may have been given before.
        """
        file = self._file(path)
        digest = blake3()
        for raw in in_order(self._run, file.runs(), threads):
            digest.update(raw.data)
            yield raw
        if digest.digest() != file.digest:
            raise CorruptFile(f"{path}: its bytes are not those that were packed")

    def read(self, path: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """`size` bytes of a file from `start` on, (size,) uint8; only objects that hold them are read.

        Raises:
            UsageError: no such file or bytes.
            CorruptFile: an object is damaged.
        """
        file = self._file(path)
        size = file.size - start if size is None else size
        if not 0 <= start <= start + size <= file.size:
            raise UsageError(f"{path}: bytes {start} to {start + size} of {file.size}")
        return self._range(file, start, size)

    def tensor(
        self, name: str, *, path: str | None = None, rows: slice = slice(None)
    ) -> tuple[np.ndarray, str, tuple[int, ...]]:
        """(bytes, dtype, shape) of a tensor, or of some of its rows; `from_raw` makes a tensor of them.

        Args:
            name: of the tensor.
            path: of the file, where several have one of that name.
            rows: of the first dimension, without steps.

        Raises:
            UsageError: no such tensor, or rows that are not in one run.
            CorruptFile: an object is damaged.
        """
        file, part = self._found(name, path)
        if not part.shape:
            return self._range(file, part.start, part.size), part.dtype, part.shape
        first, last, step = rows.indices(part.shape[0])
        if step != 1:
            raise UsageError(f"rows of {name} in one run are expected, found steps of {step}")
        count, row = max(0, last - first), part.size // max(1, part.shape[0])
        found = self._range(file, part.start + first * row, count * row)
        return found, part.dtype, (count, *part.shape[1:])

    def _found(self, name: str, path: str | None) -> tuple[StoredFile, Part]:
        files = self.files.values() if path is None else [self._file(path)]
        found = [(file, part) for file in files for part, _ in file.parts if part.name == name]
        if len(found) != 1:
            few = "none" if not found else f"{len(found)}: say of which file"
            raise UsageError(f"one tensor of the name {name!r} is expected, found {few}")
        return found[0]

    def _file(self, path: str) -> StoredFile:
        if path not in self.files:
            raise UsageError(f"no file {path!r} in the archive; there are: {', '.join(self.files)}")
        return self.files[path]

    def _range(self, file: StoredFile, start: int, size: int) -> np.ndarray:
        try:
            out = np.empty(size, np.uint8)
        except MemoryError as error:
            raise CorruptFile(f"no memory for the {size} bytes that are claimed") from error
        for run in file.runs():
            first, last = max(start, run.start), min(start + size, run.start + run.size)
            if first < last:
                raw, shift = self._cached(run), run.first - run.start
                out[first - start : last - start] = raw[first + shift : last + shift]
        return out

    def _run(self, run: Run) -> np.ndarray:
        if run.size == run.whole:
            return self._decode(run)
        return self._cached(run)[run.first : run.first + run.size]

    def _cached(self, run: Run) -> np.ndarray:
        """The whole object of a run."""
        with self._lock:
            if run.digest in self._cache:
                self._cache.move_to_end(run.digest)
                return self._cache[run.digest]
        raw = self._decode(run)
        if blake3(raw.data).digest() != run.digest:
            raise CorruptFile(f"object {run.digest.hex()}: its bytes are not those of its name")
        with self._lock:
            self._cache[run.digest] = raw
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return raw

    def _decode(self, run: Run) -> np.ndarray:
        return objects.decode(self._reader.read(run.digest.hex()), run.whole)
