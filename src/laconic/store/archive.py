"""A file, or a folder of files, in one file: what `laconic pack` writes.

An indexed file (`laconic.coding.framing`): one section for each object, named by its digest, then the
manifest. Equal objects are there once. It is written from front to back, and read anywhere.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from laconic.coding.blocks import ENGINES
from laconic.coding.framing import IndexedReader, IndexedWriter
from laconic.coding.zstd import unzstd_up_to
from laconic.errors import CorruptFile, UsageError
from laconic.store import manifest, objects
from laconic.store.ingest import Fresh, Ingest
from laconic.store.inputs import Input
from laconic.store.manifest import StoredFile
from laconic.store.pipeline import in_order
from laconic.store.reading import StoredFiles

MANIFEST = "manifest"
SUFFIX = ".lac"
MAX_MANIFEST = 1 << 28  # bytes


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
        ingest = Ingest(file, self._is_new)
        for name, blob in in_order(self._encode, ingest.fresh(), self._threads):
            self._writer.add(name.hex(), blob)
        self.files.append(ingest.stored())
        return self.files[-1]

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

    def _is_new(self, digest: bytes) -> bool:
        if digest in self._written:
            return False
        self._written.add(digest)
        return True

    def _encode(self, fresh: Fresh) -> tuple[bytes, bytes]:
        return fresh.digest, objects.encode(fresh.raw, fresh.dtype, self._engine)


class Archive(StoredFiles):
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
        super().__init__(manifest.from_bytes(plain))
        self.is_folder = bool(self._reader.metadata.get("folder"))
        if not self.is_folder and len(self.files) != 1:
            raise CorruptFile(f"manifest: one file is expected, found {len(self.files)}")

    def load(self, digest: bytes, size: int) -> np.ndarray:
        """The (size,) bytes of an object."""
        return objects.decode(self._reader.read(digest.hex()), size)

    def stored_bytes(self, digest: bytes) -> int:
        """What an object takes in the archive."""
        return self._reader.length(digest.hex())

    def kind_of(self, digest: bytes) -> str:
        """How an object is stored: `raw`, `block` or `zstd`."""
        return objects.kind_of(self._reader.head(digest.hex(), 1))
