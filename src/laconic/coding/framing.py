"""The one container of laconic: magic, version, codec, checked sections; in two profiles.

**Compact** (`Compact`, for media and single tensors): everything up to the first payload byte in a
short header, at most 32 bytes for up to three sections of up to 2 MiB each. One crc32 covers all
else, header and payloads.

    "LAC" version | codec | fingerprint 0 or 8 bytes | n | n x (type, length) | crc32 | payloads

**Indexed** (`IndexedWriter`, `IndexedReader`, for big tensor files): payloads first, as they come,
through a pipe if need be; then an index of names, offsets, lengths and xxh3-64 checksums; then a
fixed footer that says where the index is. A reader fetches and checks single sections.

    "LACI" version | payloads | index (JSON) | index offset u64, length u64, xxh3-64, "LACI"
"""

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import xxhash

from laconic.coding import varint
from laconic.errors import CorruptFile, UsageError

MAGIC = b"LAC"
INDEXED_MAGIC = b"LACI"
VERSION = 1
FINGERPRINT = 8
START = len(INDEXED_MAGIC) + 1  # of the payloads of an indexed file
_HAS_FINGERPRINT = 0x80  # in the version byte
_FOOTER = struct.Struct("<QQQ4s")
_MAX_SECTIONS = 1 << 16
_CRC = 4


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
        """The frame as it is stored.

        Raises:
            UsageError: too many sections, a negative number, or a fingerprint of another length.
        """
        if len(self.sections) > _MAX_SECTIONS:
            raise UsageError(f"{len(self.sections)} sections, where {_MAX_SECTIONS} are possible")
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
            varint.put(head, memoryview(section.payload).nbytes)
        payloads = [section.payload for section in self.sections]
        return b"".join([head, _crc(head, *payloads), *payloads])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Compact":
        """Reads a frame; payloads are copied out.

        Raises:
            CorruptFile: not a frame, of a future version, truncated, or the checksum differs.
        """
        reader = varint.Reader(data, "laconic frame")
        _check_magic(bytes(reader.take(3)), MAGIC)
        version = reader.take(1)[0]
        _check_version(version & ~_HAS_FINGERPRINT)
        codec = reader.varint()
        fingerprint = bytes(reader.take(FINGERPRINT)) if version & _HAS_FINGERPRINT else b""
        heads = [(reader.varint(), reader.varint()) for _ in range(reader.varint(_MAX_SECTIONS))]
        head = reader.data[: reader.position]
        crc = reader.take(_CRC)
        sections = [Section(kind, bytes(reader.take(length))) for kind, length in heads]
        reader.expect_end()
        if _crc(head, *(section.payload for section in sections)) != crc:
            raise CorruptFile("laconic frame: the checksum does not match")
        return cls(codec, tuple(sections), fingerprint)


class _Entry(NamedTuple):
    """What the index says of a section."""

    offset: int
    length: int
    xxh3: int
    info: dict[str, Any]


class IndexedWriter:
    """Writes an indexed file section by section; nothing is sought, so a pipe will do.

    Attributes:
        size: bytes of the file, once it is closed.

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
        self._entries: dict[str, _Entry] = {}
        self._closed = False
        self.size = 0
        stream.write(INDEXED_MAGIC + bytes([VERSION]))
        self._offset = START

    def add(self, name: str, payload: bytes | memoryview, **info: Any) -> None:
        """Writes one section; `info` (JSON values) is kept with it in the index.

        Raises:
            UsageError: the name was used before, or the index is written already.
        """
        self._expect_open()
        if name in self._entries:
            raise UsageError(f"section {name!r} was written already")
        length = memoryview(payload).nbytes
        checksum = xxhash.xxh3_64_intdigest(payload)
        self._stream.write(payload)
        self._entries[name] = _Entry(self._offset, length, checksum, info)
        self._offset += length

    def close(self, **metadata: Any) -> None:
        """Writes the index, with `metadata` (JSON values), and the footer, once; then there is a `size`.

        The end of a `with` block does it where that was not done. The stream stays open: it is the
        caller's.
        """
        self._expect_open()
        self._closed = True
        sections = {name: entry._asdict() for name, entry in self._entries.items()}
        index = json.dumps(
            {"sections": sections, "metadata": metadata}, separators=(",", ":")
        ).encode()
        self._stream.write(index)
        checksum = xxhash.xxh3_64_intdigest(index)
        self._stream.write(_FOOTER.pack(self._offset, len(index), checksum, INDEXED_MAGIC))
        self.size = self._offset + len(index) + _FOOTER.size

    def _expect_open(self) -> None:
        if self._closed:
            raise UsageError("the index of this file is written already")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._closed:
            self.close()


class IndexedReader:
    """Reads sections of an indexed file by name; nothing else is touched.

    Args:
        source: the file's path, or its bytes.

    Attributes:
        metadata: what was given to `IndexedWriter.close`.

    Raises:
        CorruptFile: not an indexed file, of a future version, truncated, or its index is damaged.
    """

    def __init__(self, source: str | Path | bytes | memoryview) -> None:
        self._source: Path | memoryview
        if isinstance(source, bytes | memoryview):
            self._source = memoryview(source).cast("B")
            size = len(self._source)
        else:
            self._source = Path(source)
            size = self._source.stat().st_size
        end = size - _FOOTER.size
        if end < START:
            raise CorruptFile(f"laconic file: {size} bytes are fewer than an empty one has")
        head = self._fetch(0, START)
        _check_magic(bytes(head[:-1]), INDEXED_MAGIC)
        _check_version(head[-1])
        offset, length, checksum, magic = _FOOTER.unpack(self._fetch(end, _FOOTER.size))
        if magic != INDEXED_MAGIC or offset + length != end:
            raise CorruptFile("laconic file: the footer is missing or damaged (truncated?)")
        index = self._fetch(offset, length)
        if xxhash.xxh3_64_intdigest(index) != checksum:
            raise CorruptFile("laconic file: the checksum of the index does not match")
        self._entries, self.metadata = _parse_index(bytes(index), offset)

    def names(self) -> Iterable[str]:
        """The sections, in the order in which they were written."""
        return self._entries.keys()

    def info(self, name: str) -> dict[str, Any]:
        """What was given to `IndexedWriter.add` with the section."""
        return self._entry(name).info

    def length(self, name: str) -> int:
        """Bytes of its payload."""
        return self._entry(name).length

    def read(self, name: str) -> bytes:
        """The payload of section `name`; raises `CorruptFile` if its checksum differs."""
        entry = self._entry(name)
        payload = bytes(self._fetch(entry.offset, entry.length))
        if xxhash.xxh3_64_intdigest(payload) != entry.xxh3:
            raise CorruptFile(f"laconic file: the checksum of section {name!r} does not match")
        return payload

    def head(self, name: str, size: int) -> bytes:
        """The first `size` bytes of its payload, or all if there are fewer; they are not checked."""
        entry = self._entry(name)
        return bytes(self._fetch(entry.offset, min(size, entry.length)))

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise UsageError(f"the file has no section {name!r}")
        return self._entries[name]

    def _fetch(self, offset: int, length: int) -> bytes | memoryview:
        part: bytes | memoryview
        if isinstance(self._source, memoryview):
            part = self._source[offset : offset + length]
        else:
            with self._source.open("rb") as file:  # one for each call: threads may read at a time
                file.seek(offset)
                part = file.read(length)
        if len(part) != length:
            raise CorruptFile(
                f"laconic file: {length} bytes expected at {offset}, found {len(part)}"
            )
        return part


def _parse_index(index: bytes, end: int) -> tuple[dict[str, _Entry], dict[str, Any]]:
    """(sections, metadata) that `index` names; every section lies between the head and `end`."""
    try:
        parsed = json.loads(index, object_pairs_hook=_unique)
        sections, metadata = parsed["sections"], parsed["metadata"]
        entries = {name: _Entry(**fields) for name, fields in sections.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"laconic file: the index cannot be read: {error!r}") from error
    for name, (offset, length, checksum, info) in entries.items():
        if not (
            all(type(number) is int for number in (offset, length, checksum))
            and START <= offset <= offset + length <= end
            and isinstance(info, dict)
        ):
            raise CorruptFile(f"laconic file: the index entry of section {name!r} is impossible")
    if not isinstance(metadata, dict):
        raise CorruptFile("laconic file: the metadata of the index is no table of names")
    return entries, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; names that occur twice would hide what they name."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _crc(*parts: bytes | bytearray | memoryview) -> bytes:
    """The crc32 of the concatenation of `parts`."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc.to_bytes(_CRC, "little")


def _check_magic(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise CorruptFile(f"not a laconic file: it starts with {found!r}, not {expected!r}")


def _check_version(found: int) -> None:
    if found != VERSION:
        raise CorruptFile(
            f"the file is of format version {found}, this laconic reads {VERSION}: "
            "pip install -U laconic"
        )
