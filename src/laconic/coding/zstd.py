"""zstd frames of known size, read without trust in what they claim."""

import numpy as np
import zstandard

from laconic.errors import CorruptFile


def unzstd(packed: np.ndarray, size: int, what: str) -> np.ndarray:
    """The (size,) bytes of the frame `packed` (N,) uint8.

    Args:
        packed: all of one frame.
        size: bytes that it must hold; what it claims would be allocated.
        what: it is, in messages.

    Raises:
        CorruptFile: not such a frame.

    Example:
        >>> frame = np.frombuffer(zstandard.compress(b"abc"), np.uint8)
        >>> unzstd(frame, 3, "example").tobytes()
        b'abc'
    """
    try:
        if zstandard.frame_content_size(packed.data) != size:
            raise CorruptFile(f"{what}: a zstd frame has an impossible size")
        plain = zstandard.ZstdDecompressor().decompress(packed.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptFile(f"{what}: zstd says {error}") from error
    return np.frombuffer(plain, np.uint8)


def unzstd_up_to(packed: np.ndarray, most: int, what: str) -> np.ndarray:
    """The bytes of a frame that says itself how many they are, at most `most`; otherwise as `unzstd`."""
    try:
        size = zstandard.frame_content_size(packed.data)
    except zstandard.ZstdError as error:
        raise CorruptFile(f"{what}: zstd says {error}") from error
    if not 0 <= size <= most:
        raise CorruptFile(f"{what}: a zstd frame claims {size} bytes, {most} are possible")
    return unzstd(packed, size, what)
