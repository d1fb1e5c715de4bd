"""Hadamard transforms: spread outliers evenly over channels without changing a layer's function."""

import math

import numpy as np
import torch
from torch import Tensor

from laconic.errors import UsageError

PRECISION = torch.float32  # at least; float64 stays float64
VALUES_AT_ONCE = 1 << 18  # so that they stay in the processor's cache


def hadamard_block(width: int) -> int:
    """The largest power of two that divides `width`.

    Raises:
        UsageError: `width` is below 1.

    Example:
        >>> hadamard_block(704), hadamard_block(4096)
        (64, 4096)
    """
    if width < 1:
        raise UsageError(f"width must be at least 1, found {width!r}")
    return width & -width


def hadamard_transform(x: Tensor, block: int | None = None) -> Tensor:
    """Multiplies every run of `block` channels by the orthonormal Hadamard matrix of that size.

    It is its own inverse, and takes log2(block) additions a value (fast Walsh-Hadamard transform,
    in the order of Sylvester). Gradients flow through it.

    Args:
        x: (..., width).
        block: a power of two that divides the width; `hadamard_block(width)` by default. Widths
            that are no power of two are so transformed in several blocks, which do not mix; see
            `full_hadamard_transform`.

    Returns:
        (..., width), in the dtype of `x`, computed in float32 or float64.

    Raises:
        UsageError: the block is no power of two or does not divide the width.

    Example:
        >>> hadamard_transform(torch.tensor([2.0, 0.0, 0.0, 0.0]))
        tensor([1., 1., 1., 1.])
    """
    width = x.shape[-1] if x.ndim else 0
    block = hadamard_block(width) if block is None else block
    if block < 1 or block & (block - 1) or width % block:
        raise UsageError(
            f"block must be a power of two that divides the width {width}, found {block!r}"
        )
    y = x.to(torch.promote_types(x.dtype, PRECISION)).reshape(-1, block)
    parts = [_transformed(part) for part in torch.split(y, max(1, VALUES_AT_ONCE // block))]
    return torch.cat(parts).reshape(x.shape).to(x.dtype)


def full_hadamard_transform(x: Tensor) -> Tensor:
    """Mixes all channels of any width with one orthonormal matrix that is its own inverse.

    The width is K 2^m with K odd: channels are transformed by Hadamard in blocks of 2^m, and the K
    blocks are mixed by the orthonormal Hartley matrix, cos + sin of 2 pi i j / K (Bracewell, 1983).
    It is fixed rather than random: no entry is above sqrt(2 / K), and nothing needs to be stored.
    Put `random_signs` before it where a random transform is wanted.

    Args:
        x: (..., width).

    Returns:
        (..., width), in the dtype of `x`, computed in float32 or float64.

    Raises:
        UsageError: there is no channel.

    Example:
        >>> x = torch.eye(12)
        >>> bool(torch.allclose(full_hadamard_transform(full_hadamard_transform(x)), x, atol=1e-6))
        True
    """
    width = x.shape[-1] if x.ndim else 0
    block = hadamard_block(width)
    y = hadamard_transform(x.to(torch.promote_types(x.dtype, PRECISION)), block)
    if width > block:
        blocks = width // block
        y = (_hartley(blocks).to(y) @ y.reshape(-1, blocks, block)).reshape(x.shape)
    return y.to(x.dtype)


def hadamard_matrix(size: int) -> Tensor:
    """The orthonormal Hadamard matrix (size, size) float64 in the order of Sylvester.

    Args:
        size: a power of two.

    Raises:
        UsageError: `size` is no power of two.

    Example:
        >>> hadamard_matrix(4)[1] * 2
        tensor([ 1., -1.,  1., -1.], dtype=torch.float64)
    """
    if size < 1 or size & (size - 1):
        raise UsageError(f"size must be a power of two, found {size!r}")
    return hadamard_transform(torch.eye(size, dtype=torch.float64))


def random_signs(width: int, seed: int) -> Tensor:
    """(width,) float32 of -1 and 1, the same for the same seed on every machine and version.

    A transform that flips signs before `hadamard_transform` can be stored as its seed. The bits are
    the highest of SplitMix64 (Steele, Lea, Flood, 2014), counted from the seed.

    Args:
        width: how many, at least 1.
        seed: 0 to 2^64 - 1.

    Raises:
        UsageError: width or seed out of range.

    Example:
        >>> random_signs(8, seed=0).tolist()
        [-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0]
    """
    if width < 1 or not 0 <= seed < 1 << 64:
        raise UsageError(f"expected width >= 1 and seed in 0..2^64-1, found {width!r} and {seed!r}")
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    z = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(golden) + np.uint64(seed)
    z = (z ^ z >> np.uint64(30)) * np.uint64(first)
    z = (z ^ z >> np.uint64(27)) * np.uint64(second)
    negative = (z ^ z >> np.uint64(31)) >> np.uint64(63)
    return torch.from_numpy(1 - 2 * negative.astype(np.float32))


def _transformed(blocks: Tensor) -> Tensor:
    """The transform of each row of `blocks` (N, block).

    Additions run over the blocks side by side: long rows, whatever the distance of a pair.
    """
    count, block = blocks.shape
    y, half = blocks.T, 1
    while half < block:
        pairs = y.reshape(block // (2 * half), 2, half, count)
        y = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), dim=1)
        y = y.reshape(block, count)
        half *= 2
    return y.T / math.sqrt(block)


def _hartley(size: int) -> Tensor:
    """(size, size) float64, symmetric, orthonormal, its own inverse."""
    index = torch.arange(size, dtype=torch.float64)
    angle = torch.outer(index, index).remainder(size) * (2 * torch.pi / size)
    return (angle.cos() + angle.sin()) / math.sqrt(size)
