"""One run of bytes, as small as what it holds allows; the first byte says how.

0  as it is
1  a block: byte planes, entropy coded (`laconic.coding.blocks`)
2  zstd, for text and what else repeats itself
3  the difference from a base, in order (`laconic.coding.deltas`); 32 bytes of its digest come first
4  the exclusive or with a base (BitX), as a block; likewise
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import zstandard

from laconic.coding import planes
from laconic.coding.blocks import Buffer, as_bytes, compress, decompress
from laconic.coding.deltas import compress_delta, decompress_delta, estimate
from laconic.coding.estimates import block_bytes, sample
from laconic.coding.zstd import unzstd
from laconic.errors import CorruptFile
from laconic.store.manifest import DIGEST

RAW, BLOCK, ZSTD, ORDERED, XOR = range(5)
KINDS = ("raw", "block", "zstd", "difference", "xor")
ZSTD_LEVEL = 9
SAMPLE = 1 << 18  # bytes that tell which way makes it smallest
GAIN = 0.99


class Base(NamedTuple):
    """An object that another is much like.

    Attributes:
        digest: its name.
        raw: its bytes; where they are fewer, zeros are thought behind them, and what is too much is left out.
    """

    digest: bytes
    raw: np.ndarray


def encode(
    raw: np.ndarray, dtype: str | None, engine: str = "huffman", base: Base | None = None
) -> bytes:
    """`raw` (N,) uint8 as an object; never more than a byte longer.

    Args:
        raw: bytes of a tensor, or of anything.
        dtype: of the tensor, as in safetensors; None where it is none.
        engine: see `laconic.coding.blocks.compress`.
        base: what it may be stored as the difference from, where that is smaller.

    Example:
        >>> raw = np.frombuffer(b"the same again, " * 100, np.uint8)
        >>> blob = encode(raw, None)
        >>> len(blob) < 60, bytes(decode(blob, raw.size)) == raw.tobytes()
        (True, True)
    """
    if base is not None and dtype is not None:
        near = _encode_near(raw, dtype, engine, base)
        if near is not None and len(near) <= raw.size:
            return near
    kind, coded = BLOCK, compress(raw, dtype or "U8", engine=engine)
    if dtype is None and _repeats(raw):
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        packed = compressor.compress(raw.data)
        if len(packed) < len(coded):
            kind, coded = ZSTD, as_bytes(packed)
    if len(coded) >= raw.size:
        kind, coded = RAW, raw
    return b"".join((bytes((kind,)), coded.data))


def decode(
    blob: Buffer, size: int, load: Callable[[bytes], np.ndarray] | None = None
) -> np.ndarray:
    """The `size` bytes of an object, (size,) uint8.

    Args:
        blob: what `encode` gave.
        size: bytes that it holds.
        load: gives the bytes of its base, by digest.

    Raises:
        CorruptFile: truncated, altered, or of another size. What is stored as it is has no checksum.
    """
    data = as_bytes(blob)
    kind = int(data[0]) if data.size else -1
    if kind == BLOCK:
        return decompress(data[1:], expect=size)
    if kind == ZSTD:
        return unzstd(data[1:], size, "object")
    if kind in (ORDERED, XOR) and data.size > DIGEST and load is not None:
        base = _fitted(load(data[1 : DIGEST + 1].tobytes()), size)
        if kind == ORDERED:
            return decompress_delta(data[DIGEST + 1 :], base)
        flipped: np.ndarray = decompress(data[DIGEST + 1 :], expect=size) ^ base
        return flipped
    if kind != RAW or data.size != size + 1:
        raise CorruptFile(f"object: {data.size} bytes of kind {kind} do not hold {size}")
    return data[1:]


def kind_of(blob: Buffer) -> str:
    """How it is stored; the first byte is enough."""
    return KINDS[as_bytes(blob)[0]]


def base_of(blob: Buffer) -> bytes | None:
    """The digest of its base, if it has one; the first 33 bytes are enough."""
    data = as_bytes(blob)
    return data[1 : DIGEST + 1].tobytes() if data[0] in (ORDERED, XOR) else None


def _encode_near(raw: np.ndarray, dtype: str, engine: str, base: Base) -> bytes | None:
    """The difference or the exclusive or; None where a sample says that neither is smallest."""
    before = _fitted(base.raw, raw.size)
    kind = _nearest(raw, before, dtype)
    if kind == BLOCK:
        return None
    if kind == ORDERED:
        coded = compress_delta(raw, before, dtype)
    else:
        coded = compress(raw ^ before, dtype, engine=engine)
    return b"".join((bytes((kind,)), base.digest, coded.data))


def _fitted(base: np.ndarray, size: int) -> np.ndarray:
    """Cut, or with zeros behind it: embeddings grow by some rows."""
    if base.size >= size:
        return base[:size]
    out = np.zeros(size, np.uint8)
    out[: base.size] = base
    return out


def _nearest(raw: np.ndarray, base: np.ndarray, dtype: str) -> int:
    """Which of three ways a sample says is smallest."""
    step = planes.layout_of(dtype).itemsize
    some, other = sample(raw, SAMPLE, step), sample(base, SAMPLE, step)
    sizes = {
        BLOCK: block_bytes(some, dtype), ORDERED: estimate(some, other, dtype),
        XOR: block_bytes(some ^ other, dtype),
    }  # fmt: skip
    return min((ORDERED, XOR, BLOCK), key=lambda kind: sizes[kind])


def _repeats(raw: np.ndarray) -> bool:
    """Whether zstd makes the middle of it smaller."""
    some = sample(raw, SAMPLE)
    return len(zstandard.ZstdCompressor(level=1).compress(some.data)) < GAIN * some.size
