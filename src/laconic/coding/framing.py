"""The one container of laconic: magic, version, codec, checksummed sections; in two profiles.

**Compact** (`Compact`, for media and single tensors): everything up to the first payload byte in a
short header, at most 32 bytes for up to three sections.

    "LAC" version | codec varint | fingerprint 0 or 8 bytes | n | n x (type, length, crc32) | payloads

**Indexed** (`IndexedWriter`, `IndexedReader`, for big tensor files): payloads first, as they come,
through a pipe if need be; then an index of names, offsets, lengths and xxh3-64 checksums; then a
fixed footer that says where the index is. A reader fetches single sections.

    "LACI" version | payloads | index (JSON) | index offset u64, length u64, xxh3-64, "LACI"
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import xxhash

from laconic.coding import varint
from laconic.errors import CorruptFile, UsageError

MAGIC = b"LAC"
INDEXED_MAGIC = b"LACI"
VERSION = 1
FINGERPRINT = 8
_HAS_FINGERPRINT = 0x80  # in the version byte
_FOOTER = struct.Struct("<QQQ4s")
_MAX_SECTIONS = 1 << 16


@dataclass(frozen=True)
class Section:
    """A typed run of bytes; what a type means is the codec's business."""

    type: int
    payload: bytes | memoryview


@dataclass(frozen=True)
class Compact:
    """A compact frame.

    Attributes:
        codec: the number of the codec that wrote it.
        sections: its parts, in order; at most 65,536.
        fingerprint: of the model needed to read it: eight bytes, or none.

    Example:
        >>> frame = Compact(5, (Section(1, b"codes"),))
        >>> Compact.from_bytes(frame.to_bytes()) == frame
        True
    """

    codec: int
    sections: tuple[Section, ...]
    fingerprint: bytes = b""

    def to_bytes(self) -> bytes:
        """The frame as it is stored."""
        if len(self.fingerprint) not in (0, FINGERPRINT):
            raise UsageError(
                f"a fingerprint has 0 or {FINGERPRINT} bytes, found {len(self.fingerprint)}"
            )
        head = bytearray(MAGIC)
        head.append(VERSION | (_HAS_FINGERPRINT if self.fingerprint else 0))
        varint.put(head, self.codec)
        head += self.fingerprint
        varint.put(head, len(self.sections))
        for section in self.sections:
            varint.put(head, section.type)
            varint.put(head, len(section.payload))
            head += zlib.crc32(section.payload).to_bytes(4, "little")
        return b"".join([head, *(section.payload for section in self.sections)])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Compact":
        """Reads a frame; payloads are copied out.

        Raises:
            CorruptFile: not a frame, of a future version, truncated, or a checksum differs.
        """
        reader = varint.Reader(data, "laconic frame")
        _check_magic(bytes(reader.take(3)), MAGIC)
        version = reader.take(1)[0]
        _check_version(version & ~_HAS_FINGERPRINT)
        codec = reader.varint()
        fingerprint = bytes(reader.take(FINGERPRINT)) if version & _HAS_FINGERPRINT else b""
        heads = [
            (reader.varint(), reader.varint(), int.from_bytes(reader.take(4), "little"))
            for _ in range(reader.varint(_MAX_SECTIONS))
        ]
        sections = []
        for number, (kind, length, crc) in enumerate(heads):
            payload = bytes(reader.take(length))
            if zlib.crc32(payload) != crc:
                raise CorruptFile(f"laconic frame: the checksum of section {number} does not match")
            sections.append(Section(kind, payload))
        reader.expect_end()
        return cls(codec, tuple(sections), fingerprint)


class IndexedWriter:
    """Writes an indexed file section by section; nothing is sought, so a pipe will do.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> with IndexedWriter(stream) as writer:
        ...     writer.add("weights", b"1234", dtype="U8")
        >>> IndexedReader(stream.getvalue()).read("weights")
        b'1234'
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._entries: dict[str, dict[str, Any]] = {}
        self._metadata: dict[str, Any] = {}
        stream.write(INDEXED_MAGIC + bytes([VERSION]))
        self._offset = len(INDEXED_MAGIC) + 1

    def add(self, name: str, payload: bytes | memoryview, **info: Any) -> None:
        """Writes one section; `info` (JSON values) is kept with it in the index."""
        if name in self._entries:
            raise UsageError(f"section {name!r} was written already")
        checksum = xxhash.xxh3_64_intdigest(payload)
        entry = {"offset": self._offset, "length": len(payload), "xxh3": checksum, "info": info}
        self._stream.write(payload)
        self._offset += len(payload)
        self._entries[name] = entry

    def close(self, **metadata: Any) -> None:
        """Writes the index and the footer. The stream stays open: it is the caller's."""
        index = json.dumps(
            {"sections": self._entries, "metadata": metadata}, separators=(",", ":")
        ).encode()
        self._stream.write(index)
        checksum = xxhash.xxh3_64_intdigest(index)
        self._stream.write(_FOOTER.pack(self._offset, len(index), checksum, INDEXED_MAGIC))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()


class IndexedReader:
    """Reads sections of an indexed file by name, with pread; nothing else is touched.

    Args:
        source: the file's path, or its bytes.

    Attributes:
        metadata: what was given to `IndexedWriter.close`.

    Raises:
        CorruptFile: not an indexed file, of a future version, truncated, or its index is damaged.
    """

    def __init__(self, source: str | Path | bytes | memoryview) -> None:
        self._path = None if isinstance(source, bytes | memoryview) else Path(source)
        self._data = memoryview(source) if isinstance(source, bytes | memoryview) else None
        self._size = self._path.stat().st_size if self._path else len(self._data or b"")
        least = len(INDEXED_MAGIC) + 1 + _FOOTER.size
        if self._size < least:
            raise CorruptFile(f"laconic file: {self._size} bytes is less than the {least} of none")
        head = self._pread(0, len(INDEXED_MAGIC) + 1)
        _check_magic(bytes(head[:4]), INDEXED_MAGIC)
        _check_version(head[4])
        offset, length, checksum, magic = _FOOTER.unpack(
            self._pread(self._size - _FOOTER.size, _FOOTER.size)
        )
        if magic != INDEXED_MAGIC or offset + length != self._size - _FOOTER.size:
            raise CorruptFile("laconic file: the footer is missing or damaged (truncated?)")
        index = self._pread(offset, length)
        if xxhash.xxh3_64_intdigest(index) != checksum:
            raise CorruptFile("laconic file: the checksum of the index does not match")
        try:
            parsed = json.loads(index)
            self.metadata: dict[str, Any] = parsed["metadata"]
            self._entries: dict[str, dict[str, Any]] = parsed["sections"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"laconic file: the index cannot be read: {error}") from error

    def names(self) -> Iterable[str]:
        """The sections, in the order in which they were written."""
        return self._entries.keys()

    def info(self, name: str) -> dict[str, Any]:
        """What was given to `IndexedWriter.add` with the section."""
        info: dict[str, Any] = self._entry(name)["info"]
        return info

    def read(self, name: str) -> bytes:
        """The payload of section `name`; raises `CorruptFile` if its checksum differs."""
        entry = self._entry(name)
        payload = bytes(self._pread(entry["offset"], entry["length"]))
        if xxhash.xxh3_64_intdigest(payload) != entry["xxh3"]:
            raise CorruptFile(f"laconic file: the checksum of section {name!r} does not match")
        return payload

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._entries:
            raise UsageError(f"the file has no section {name!r}")
        return self._entries[name]

    def _pread(self, offset: int, length: int) -> bytes | memoryview:
        if self._data is not None:
            part: bytes | memoryview = self._data[offset : offset + length]
        else:
            assert self._path is not None
            with self._path.open("rb") as file:
                part = os.pread(file.fileno(), length, offset)
        if len(part) != length:
            raise CorruptFile(f"laconic file: {length} bytes expected at {offset}, found {len(part)}")
        return part


def _check_magic(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise CorruptFile(f"not a laconic file: it starts with {found!r}, not {expected!r}")


def _check_version(found: int) -> None:
    if found != VERSION:
        raise CorruptFile(
            f"the file is of format version {found}, this laconic reads {VERSION}: "
            "pip install -U laconic"
        )
