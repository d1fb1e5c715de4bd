"""A buffer of any dtype, losslessly smaller: byte planes, chunks, and for each the engine it deserves.

    buffer -> chunks -> byte planes -> per plane: constant | zstd | Huffman or rANS | raw
                                      second plane of floats: rANS in the context of the first

Chunks are independent, so that they can be coded and decoded in parallel. Frequency tables are
shared by the chunks whose histograms agree (another table must save more than it costs).
Layout of the result: byte-plane layout, sizes, payloads, directory, tail bytes, xxh3-64 of the
original bytes, length of the directory: written from front to back, so that a stream will do.

Source: ZipNN (Hershcovitch et al., 2024, arXiv 2411.05239), with table sharing, rANS, contexts and
the entropy test instead of trial coding.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xxhash
import zstandard

from laconic.coding import planes, varint
from laconic.coding.contexts import Context, ContextBook, joint_histogram
from laconic.coding.directory import (
    CODERS,
    CONSTANT,
    CONTEXT,
    HUFFMAN,
    RANS,
    RAW,
    ZSTD,
    Directory,
    Entry,
    read_directory,
)
from laconic.coding.planes import Layout
from laconic.coding.rans import LANES, SHORT
from laconic.coding.sharing import TableBook
from laconic.coding.tables import entropy_bits, histogram
from laconic.errors import CorruptFile, UsageError

CHUNKS = {"huffman": 1 << 19, "rans": 1 << 17}  # rANS gains more from fitting than tables cost
MIN_CHUNK, MAX_CHUNK = 1 << 12, 1 << 22
BATCH = 16  # chunks in work at a time; their planes are the memory that compress needs
ENGINES = {"huffman": HUFFMAN, "rans": RANS}
WORTHWHILE = 0.95  # what is hardly compressible is stored raw, and decodes at once
ZSTD_SHARE = 0.5  # share of one symbol from which runs are likely and zstd is tried as well
SAMPLE = 2048  # bytes a run of the sample that tells noise; every eighth run is looked at
CONTEXT_GAIN = 0.002  # share of a plane that contexts must save; they decode slower than a copy
FOOTER = 12  # xxh3-64 of the original, u32 length of the directory

Buffer = bytes | bytearray | memoryview | np.ndarray
Mapper = Callable[..., Iterator[Any]]


class Piece(NamedTuple):
    """One plane of one chunk: how it is coded and its payload."""

    kind: int
    table: int
    payload: np.ndarray


def compress(
    data: Buffer,
    dtype: str = "U8",
    *,
    engine: str = "huffman",
    chunk: int | None = None,
    worthwhile: float = WORTHWHILE,
    threads: int = 1,
) -> np.ndarray:
    """Codes `data` without loss; the input is not changed.

    Args:
        data: any bytes-like object or contiguous array.
        dtype: what the bytes are, named as in safetensors (`BF16`, `F32`, `U8` ...).
        engine: `huffman` (fastest) or `rans` (smallest).
        chunk: bytes a chunk, a multiple of 8 from 4 KiB to 4 MiB; by default 512 KiB for `huffman`,
            128 KiB for `rans`.
        worthwhile: a plane is coded only if that brings it below this share of its size; `rans`
            codes the plane below the exponents also where that saves 0.2 %.
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
    chunk = CHUNKS[engine] if chunk is None else chunk
    if not MIN_CHUNK <= chunk <= MAX_CHUNK or chunk % 8:
        raise UsageError(
            f"chunk must be a multiple of 8 in {MIN_CHUNK}..{MAX_CHUNK}, found {chunk}"
        )
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
    book, contexts = TableBook(groups), ContextBook()
    conditional = coder == RANS and layout.rotate
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
            given: list[Context | None] = [None] * len(parts)
            if conditional:
                _find_contexts(given, parts, counts, owners, groups, contexts, run)
            code = partial(_code, book=book, coder=coder, worthwhile=worthwhile)
            for piece in run(code, parts, counts, owners, given, rooms):
                size = len(piece.payload)
                out[end : end + size] = piece.payload
                end += size
                entries.append(Entry(piece.kind, piece.table, size))
    tail = bytearray(Directory(entries, book.tables, contexts.sets).to_bytes())
    tail += raw[whole:].tobytes()
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
    if chunk < MIN_CHUNK or chunk % 8:
        raise CorruptFile(f"compressed block: chunk size {chunk} is impossible")
    if expect not in (None, size):
        raise CorruptFile(f"compressed block: {expect} bytes expected, it claims {size}")
    whole = size - size % layout.itemsize
    directory_size = int.from_bytes(data[-4:], "little")
    payload = reader.take(len(reader.data) - reader.position - directory_size)
    directory = read_directory(reader, layout, whole, chunk)
    tail = np.frombuffer(reader.take(size - whole), np.uint8)
    reader.expect_end()
    lengths = [entry.length for entry in directory.entries]
    if sum(lengths) != len(payload):
        raise CorruptFile("compressed block: the directory does not match the payload")
    try:
        out = np.empty(size, np.uint8)
    except MemoryError as error:
        raise CorruptFile(f"compressed block: no memory for the {size} bytes it claims") from error
    out[whole:] = tail
    stream = np.frombuffer(payload, np.uint8)
    ends = np.cumsum(lengths, dtype=np.int64)

    def restore(number: int) -> None:
        target = out[number * chunk : min(whole, (number + 1) * chunk)]
        parts = np.empty((layout.itemsize, target.size // layout.itemsize), np.uint8)
        for g in reversed(range(layout.itemsize)):  # the top plane is the context of the next
            piece = number * layout.itemsize + g
            coded = stream[ends[piece] - lengths[piece] : ends[piece]]
            directory.restore(piece, coded, parts[-1], parts[g])
        planes.join(parts, layout, planes.words(target, layout))

    with _mapper(threads) as run:
        for _ in run(restore, range(len(lengths) // layout.itemsize)):
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


def _find_contexts(
    given: list[Context | None],
    parts: list[np.ndarray],
    counts: list[np.ndarray],
    owners: list[int],
    groups: int,
    book: ContextBook,
    run: Mapper,
) -> None:
    """Fills `given` for the planes below coded exponents where that saves enough."""
    seconds = [
        number
        for number in range(groups - 2, len(parts), groups)
        if owners[number + 1] >= 0 and parts[number].size >= SHORT
    ]
    above = [parts[number + 1] for number in seconds]
    joints = list(run(joint_histogram, [parts[number] for number in seconds], above))
    if not joints:
        return
    chosen = book.assign(np.sum(joints, axis=0))
    for number, top, joint in zip(seconds, above, joints):
        size = 8 * top.size
        alone = entropy_bits(counts[number]) if owners[number] >= 0 else size
        if book.sets[chosen].bits(joint) + CONTEXT_GAIN * size + 32 * LANES < alone:
            given[number] = Context(chosen, book.sets[chosen], top)


def _code(
    part: np.ndarray,
    counts: np.ndarray,
    owner: int,
    context: Context | None,
    room: np.ndarray,
    book: TableBook,
    coder: int,
    worthwhile: float,
) -> Piece:
    if counts.max() == part.size:
        return Piece(CONSTANT, 0, part[:1])
    piece = Piece(RAW, 0, part)
    if context is not None:
        coded = context.tables.encode(part, context.above, room)
        if len(coded) < part.size:
            piece = Piece(CONTEXT, context.number, coded)
    elif owner >= 0:
        coded = CODERS[coder].encode(part, 0, book.tables[owner], room)
        if len(coded) < part.size:
            piece = Piece(coder, owner, coded)
    if counts.max() > ZSTD_SHARE * part.size:
        packed = np.frombuffer(zstandard.ZstdCompressor(level=3).compress(part.data), np.uint8)
        if len(packed) < min(len(piece.payload), worthwhile * part.size):
            piece = Piece(ZSTD, 0, packed)
    return piece
