"""About how many bytes a buffer needs, without coding it."""

import numpy as np

from laconic.coding import planes
from laconic.coding.tables import entropy_bits, histogram


def block_bytes(raw: np.ndarray, dtype: str) -> float:
    """What `laconic.coding.blocks.compress` makes of `raw` (N,) uint8, about: the entropy of its planes.

    Example:
        >>> block_bytes(np.zeros(4096, np.uint8), "BF16")
        0.0
    """
    layout = planes.layout_of(dtype)
    whole = raw.size - raw.size % layout.itemsize
    parts = planes.split(planes.words(raw[:whole], layout), layout)
    return sum(float(entropy_bits(histogram(part))) for part in parts) / 8 + raw.size - whole


def sample(raw: np.ndarray, size: int, step: int = 8) -> np.ndarray:
    """`size` bytes from the middle of `raw` (N,), or all; begins at a multiple of `step`.

    Example:
        >>> sample(np.arange(100), 16).tolist() == list(range(40, 56))
        True
    """
    start = max(0, (raw.size - size) // 2)
    start -= start % step
    return raw[start : start + size]
