"""A buffer of any dtype, losslessly smaller: byte planes, chunks, and for each the engine it deserves.

    buffer -> chunks of 512 KiB -> byte planes -> per plane: constant | zstd | Huffman or rANS | raw

Chunks are independent, so that they can be coded and decoded in parallel. Frequency tables are
shared by the chunks whose histograms agree (another table must save more than it costs).
Layout of the result: byte-plane layout, sizes, payloads, tables, a directory (kind, table, length
per chunk and plane), tail bytes, xxh3-64 of the original bytes, length of the directory: written
from front to back, so that a stream will do.

Source: ZipNN (Hershcovitch et al., 2024, arXiv 2411.05239), with table sharing, rANS and the
entropy test instead of trial coding.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xxhash
import zstandard

from laconic.coding import huffman, planes, rans, varint
from laconic.coding.planes import Layout
from laconic.coding.sharing import MOST, TableBook
from laconic.coding.tables import Tables, entropy_bits, histogram
from laconic.errors import CorruptFile, UsageError

CHUNK = 1 << 19
MAX_CHUNK = 1 << 22
BATCH = 16  # chunks in work at a time; their planes are the memory that compress needs
RAW, HUFFMAN, CONSTANT, RANS, ZSTD = range(5)
KINDS = ("raw", "huffman", "constant", "rans", "zstd")
ENGINES = {"huffman": HUFFMAN, "rans": RANS}
CODERS = {HUFFMAN: huffman, RANS: rans}
WORTHWHILE = 0.95  # what is hardly compressible is stored raw, and decodes at once
ZSTD_SHARE = 0.5  # share of one symbol from which runs are likely and zstd is tried as well
SAMPLE = 2048  # bytes a run of the sample that tells noise; every eighth run is looked at
LEAST = 4  # bytes that a piece takes: three in the directory and one of payload
FOOTER = 12  # xxh3-64 of the original, u32 length of the directory

Buffer = bytes | bytearray | memoryview | np.ndarray
Mapper = Callable[..., Iterator[Any]]


class Piece(NamedTuple):
    """One plane of one chunk: how it is coded and its payload."""

    kind: int
    table: int
    payload: np.ndarray


class Entry(NamedTuple):
    """What the directory says of a piece."""

    kind: int
    table: int
    length: int


def compress(
    data: Buffer,
    dtype: str = "U8",
    *,
    engine: str = "huffman",
    chunk: int = CHUNK,
    worthwhile: float = WORTHWHILE,
    threads: int = 1,
) -> np.ndarray:
    """Codes `data` without loss; the input is not changed.

    Args:
        data: any bytes-like object or contiguous array.
        dtype: what the bytes are, named as in safetensors (`BF16`, `F32`, `U8` ...).
        engine: `huffman` (fastest) or `rans` (smallest).
        chunk: bytes a chunk, a multiple of 8.
        worthwhile: a plane is coded only if that brings it below this share of its size.
        threads: worker threads over the chunks; the result does not depend on it.

    Returns:
        The compressed block, (bytes,) uint8.

    Raises:
        UsageError: an unknown dtype or engine, or an impossible chunk size.

    Example:
        >>> blob = compress(np.zeros(10_000, np.float32), "F32")
        >>> len(blob) < 100, decompress(blob).size
        (True, 40000)
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if not 0 < chunk <= MAX_CHUNK or chunk % 8:
        raise UsageError(f"chunk must be a multiple of 8 up to {MAX_CHUNK}, found {chunk}")
    raw = as_bytes(data)
    layout = planes.layout_of(dtype)
    whole = raw.size - raw.size % layout.itemsize
    groups, coder = layout.itemsize, ENGINES[engine]
    head = bytearray([layout.code()])
    varint.put(head, raw.size)
    varint.put(head, chunk)
    out = np.empty(len(head) + whole, np.uint8)  # no piece is longer than what it codes
    out[: len(head)] = head
    end = len(head)
    book = TableBook(groups)
    entries: list[Entry] = []
    room_size = CODERS[coder].room(min(chunk, raw.size) // groups)
    rooms = [np.empty(room_size, np.uint8) for _ in range(BATCH * groups)]
    with _mapper(threads) as run:
        for start in range(0, whole, BATCH * chunk):
            stop = min(whole, start + BATCH * chunk)
            spans = [raw[a : min(stop, a + chunk)] for a in range(start, stop, chunk)]
            split = run(lambda span: planes.split(planes.words(span, layout), layout), spans)
            parts = [part for chunk_parts in split for part in chunk_parts]
            counts = list(run(_count, parts))
            owners = [
                _owner(book, count, part.size, number % groups, worthwhile)
                for number, (part, count) in enumerate(zip(parts, counts))
            ]
            book.close_batch()
            code = partial(_code, book=book, coder=coder, worthwhile=worthwhile)
            for piece in run(code, parts, counts, owners, rooms):
                size = len(piece.payload)
                out[end : end + size] = piece.payload
                end += size
                entries.append(Entry(piece.kind, piece.table, size))
    tail = _write_directory(entries, book.tables) + raw[whole:].tobytes()
    checksum = xxhash.xxh3_64_intdigest(raw.data)
    tail += checksum.to_bytes(8, "little") + len(tail).to_bytes(4, "little")
    out.resize(end + len(tail), refcheck=False)
    out[end:] = tail
    return out


def decompress(blob: Buffer, *, expect: int | None = None, threads: int = 1) -> np.ndarray:
    """The original bytes, (N,) uint8, of a result of `compress`.

    Args:
        blob: the result of `compress`.
        expect: how many bytes it must hold, where that is known: a hostile blob can claim terabytes.
        threads: worker threads over the chunks.

    Raises:
        CorruptFile: the blob is truncated or altered; a wrong buffer is never returned.
    """
    data = as_bytes(blob).data
    reader = varint.Reader(data[: max(0, len(data) - FOOTER)], "compressed block")
    layout = Layout.from_code(reader.take(1)[0])
    size = reader.varint(2**48)
    chunk = reader.varint(MAX_CHUNK)
    if chunk == 0 or chunk % 8:
        raise CorruptFile(f"compressed block: chunk size {chunk} is impossible")
    if expect not in (None, size):
        raise CorruptFile(f"compressed block: {expect} bytes expected, it claims {size}")
    whole = size - size % layout.itemsize
    directory_size = int.from_bytes(data[-4:], "little")
    payload = reader.take(len(reader.data) - reader.position - directory_size)
    tables, entries = _read_directory(reader, layout, size, whole, chunk)
    tail = np.frombuffer(reader.take(size - whole), np.uint8)
    reader.expect_end()
    if sum(entry.length for entry in entries) != len(payload):
        raise CorruptFile("compressed block: the directory does not match the payload")
    try:
        out = np.empty(size, np.uint8)
    except MemoryError as error:
        raise CorruptFile(f"compressed block: no memory for the {size} bytes it claims") from error
    out[whole:] = tail
    stream = np.frombuffer(payload, np.uint8)
    ends = np.cumsum([entry.length for entry in entries], dtype=np.int64)

    def restore(number: int) -> None:
        target = out[number * chunk : min(whole, (number + 1) * chunk)]
        parts = np.empty((layout.itemsize, target.size // layout.itemsize), np.uint8)
        for g in range(layout.itemsize):
            piece = number * layout.itemsize + g
            entry = entries[piece]
            _restore(entry, stream[ends[piece] - entry.length : ends[piece]], tables, parts[g])
        planes.join(parts, layout, planes.words(target, layout))

    with _mapper(threads) as run:
        for _ in run(restore, range(len(entries) // layout.itemsize)):
            pass
    if xxhash.xxh3_64_intdigest(out.data) != int.from_bytes(data[-FOOTER:-4], "little"):
        raise CorruptFile("compressed block: the checksum of the restored bytes does not match")
    return out


def as_bytes(data: Buffer) -> np.ndarray:
    """`data` as (N,) uint8, a view wherever that is possible."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)


@contextmanager
def _mapper(threads: int) -> Iterator[Mapper]:
    """`map`, over `threads` worker threads where there are more than one."""
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    else:
        yield map


def _count(part: np.ndarray) -> np.ndarray:
    """The histogram of a plane; only of a sample where that already looks like noise."""
    if part.size >= 8 * SAMPLE:
        sample = part[: part.size // SAMPLE * SAMPLE].reshape(-1, SAMPLE)[::8].reshape(-1)
        counts: np.ndarray = histogram(sample)
        if entropy_bits(counts) > 7.9 * sample.size:
            return counts
    whole: np.ndarray = histogram(part)
    return whole


def _owner(book: TableBook, counts: np.ndarray, size: int, group: int, worthwhile: float) -> int:
    """The table for a plane; -1 where it is constant or better left raw."""
    seen, budget = int(counts.sum()), worthwhile * 8 * size
    if counts.max() == size or seen < size or entropy_bits(counts) >= budget:
        return -1
    return book.assign(counts, group, budget)


def _code(
    part: np.ndarray,
    counts: np.ndarray,
    owner: int,
    room: np.ndarray,
    book: TableBook,
    coder: int,
    worthwhile: float,
) -> Piece:
    if counts.max() == part.size:
        return Piece(CONSTANT, 0, part[:1])
    piece = Piece(RAW, 0, part)
    if owner >= 0:
        coded = CODERS[coder].encode(part, 0, book.tables[owner], room)
        if len(coded) < part.size:
            piece = Piece(coder, owner, coded)
    if counts.max() > ZSTD_SHARE * part.size:
        packed = np.frombuffer(zstandard.ZstdCompressor(level=3).compress(part.data), np.uint8)
        if len(packed) < min(len(piece.payload), worthwhile * part.size):
            piece = Piece(ZSTD, 0, packed)
    return piece


def _write_directory(entries: list[Entry], tables: list[Tables]) -> bytearray:
    """The tables in use, in the order of their first use, and the entries."""
    used: dict[int, int] = {}
    directory = bytearray()
    for kind, table, length in entries:
        directory.append(kind)
        varint.put(directory, used.setdefault(table, len(used)) if kind in CODERS else 0)
        varint.put(directory, length)
    out = bytearray()
    varint.put(out, len(used))
    for table in used:
        out += tables[table].to_bytes()
    return out + directory


def _read_directory(
    reader: varint.Reader, layout: Layout, size: int, whole: int, chunk: int
) -> tuple[list[Tables], list[Entry]]:
    """Tables and entries; sizes that the payloads cannot hold are refused before any allocation."""
    pieces = -(-whole // chunk) * layout.itemsize
    if LEAST * pieces > len(reader.data):
        raise CorruptFile(f"compressed block: {size} bytes cannot come from so short a file")
    tables = [Tables.read(reader, 1) for _ in range(reader.varint(min(pieces, MOST)))]
    entries = []
    for number in range(pieces):
        entry = Entry(reader.take(1)[0], reader.varint(), reader.varint())
        start = number // layout.itemsize * chunk
        symbols = (min(whole, start + chunk) - start) // layout.itemsize
        least = {RAW: symbols, HUFFMAN: -(-symbols // 8), CONSTANT: 1}.get(entry.kind, 4)
        if entry.kind >= len(KINDS) or entry.length < least:
            raise CorruptFile(f"compressed block: piece {number} cannot hold {symbols} symbols")
        if entry.table >= (len(tables) if entry.kind in CODERS else 1):
            raise CorruptFile(f"compressed block: piece {number} names a table that is not there")
        entries.append(entry)
    return tables, entries


def _restore(entry: Entry, payload: np.ndarray, tables: list[Tables], out: np.ndarray) -> None:
    """Decodes one piece into `out`."""
    if entry.kind in CODERS:
        CODERS[entry.kind].decode(payload, out.size, 0, tables[entry.table], out)
    elif entry.kind == ZSTD:
        try:
            if zstandard.frame_content_size(payload.data) != out.size:  # it would be allocated
                raise CorruptFile("compressed block: a zstd piece has an impossible size")
            plain = zstandard.ZstdDecompressor().decompress(payload.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptFile(f"compressed block: zstd says {error}") from error
        out[:] = np.frombuffer(plain, np.uint8)
    elif payload.size == (1 if entry.kind == CONSTANT else out.size):
        out[:] = payload
    else:
        raise CorruptFile(f"compressed block: a {KINDS[entry.kind]} piece has an impossible size")
