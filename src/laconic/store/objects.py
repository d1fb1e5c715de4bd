"""One run of bytes, as small as what it holds allows; the first byte says how.

0  as it is
1  a block: byte planes, entropy coded (`laconic.coding.blocks`)
2  zstd, for text and what else repeats itself
"""

import numpy as np
import zstandard

from laconic.coding.blocks import Buffer, as_bytes, compress, decompress
from laconic.coding.zstd import unzstd
from laconic.errors import CorruptFile

RAW, BLOCK, ZSTD = range(3)
KINDS = ("raw", "block", "zstd")
ZSTD_LEVEL = 9
SAMPLE = 1 << 18  # bytes of something unknown that tell whether zstd makes it smaller
GAIN = 0.99


def encode(raw: np.ndarray, dtype: str | None, engine: str = "huffman") -> bytes:
    """`raw` (N,) uint8 as an object; never more than a byte longer.

    Args:
        raw: bytes of a tensor, or of anything.
        dtype: of the tensor, as in safetensors; None where it is none.
        engine: see `laconic.coding.blocks.compress`.

    Example:
        >>> raw = np.frombuffer(b"the same again, " * 100, np.uint8)
        >>> blob = encode(raw, None)
        >>> len(blob) < 60, bytes(decode(blob, raw.size)) == raw.tobytes()
        (True, True)
    """
    kind, coded = BLOCK, compress(raw, dtype or "U8", engine=engine).data
    if dtype is None and _repeats(raw):
        packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(raw.data)
        if len(packed) < len(coded):
            kind, coded = ZSTD, memoryview(packed)
    if len(coded) >= raw.size:
        kind, coded = RAW, raw.data
    return b"".join((bytes((kind,)), coded))


def decode(blob: Buffer, size: int) -> np.ndarray:
    """The `size` bytes of an object, (size,) uint8.

    Raises:
        CorruptFile: truncated, altered, or of another size. What is stored as it is has no checksum.
    """
    data = as_bytes(blob)
    kind = int(data[0]) if data.size else -1
    if kind == BLOCK:
        return decompress(data[1:], expect=size)
    if kind == ZSTD:
        return unzstd(data[1:], size, "object")
    if kind != RAW or data.size != size + 1:
        raise CorruptFile(f"object: {data.size} bytes of kind {kind} do not hold {size}")
    return data[1:]


def kind_of(blob: Buffer) -> str:
    """`raw`, `block` or `zstd`."""
    return KINDS[as_bytes(blob)[0]]


def _repeats(raw: np.ndarray) -> bool:
    """Whether zstd makes the middle of it smaller."""
    start = max(0, (raw.size - SAMPLE) // 2)
    sample = raw[start : start + SAMPLE]
    return len(zstandard.ZstdCompressor(level=1).compress(sample.data)) < GAIN * sample.size
