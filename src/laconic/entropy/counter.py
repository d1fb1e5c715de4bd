"""A counter of bits that gradients pass through: the entropy of rounded codes from a smoothed histogram.

Codes c that are rounded to k take `-log2 P_k` bits each, with P_k the share of codes that round to k. As a count
it has no gradient, so that every code is smeared over +-delta by a kernel K, a distribution function on -1..1:

    F(x) = sum_j K((x - c_j) / delta),    P_k = (F(k + 1/2) - F(k - 1/2)) / N

(L2 compression, Shi et al., 2023, section 3.3). From sorted codes and prefix sums F takes O(log N) for each of the
few hundred places k + 1/2, instead of a comparison of every code with every other.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from laconic.errors import BadWeights, UsageError

Kernel = Literal["cos", "tri", "lin"]
PRECISION = torch.float64  # prefix sums of many codes cancel in less
RESOLUTION = 64  # of the range of codes in delta
MOST_LEVELS = 1 << 16
Ends = tuple[
    Tensor, Tensor, Tensor
]  # of each place: first code within reach, first above it, end of reach


def soft_bits(codes: Tensor, kernel: Kernel = "cos", resolution: int = RESOLUTION) -> Tensor:
    """Bits that all `codes` take once they are rounded and entropy coded, side information not counted.

    Gradients flow to the codes both ways: a code moves to where others are, and the histogram moves with it;
    rounding itself passes them straight through.

    Args:
        codes: any shape, not rounded; at least one.
        kernel: how a code is smeared: `cos`, `tri` (triangle) or `lin` (evenly).
        resolution: the range of the codes in units of what they are smeared by.

    Returns:
        A scalar, float64.

    Raises:
        UsageError: no codes, an unknown kernel, a resolution below 1, or codes over more than 65536 levels.
        BadWeights: NaN or infinity.

    Example:
        >>> round(float(soft_bits(torch.tensor([0.0, 0.0, 1.0, 1.0]))), 6)
        4.0
    """
    if kernel not in get_args(Kernel):
        raise UsageError(f"kernel must be one of {get_args(Kernel)}, found {kernel!r}")
    if not codes.numel() or not resolution >= 1:
        raise UsageError(
            f"expected codes and a resolution of at least 1, found {codes.numel()} and {resolution!r}"
        )
    if not torch.isfinite(codes).all():
        raise BadWeights("the codes hold NaN or infinity")
    if float(codes.detach().max() - codes.detach().min()) > MOST_LEVELS:
        raise UsageError(f"codes spread over more than {MOST_LEVELS} levels: take larger steps")
    bits: Tensor = _SoftBits.apply(codes, kernel, resolution)  # type: ignore[no-untyped-call]
    return bits


class _SoftBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, kernel: Kernel, resolution: int) -> Tensor:
        c, order = codes.detach().to(PRECISION).flatten().sort()
        count = c.numel()
        delta = max(float(c[-1] - c[0]) / resolution, 1e-9)
        levels = c.round()
        low, high = int(levels[0]), int(levels[-1])
        places = torch.arange(low, high + 2, dtype=PRECISION, device=c.device) - 0.5
        above = _smoothed(c, places, delta, kernel)
        share = above.diff().clamp(min=0.5) / count  # an own code counts half at least
        index = (levels - low).long()
        each = torch.bincount(index, minlength=high - low + 1).to(PRECISION)
        taken = torch.where(each > 0, -share.log2(), 0)
        ctx.save_for_backward(c, order, places, share, each, index)
        ctx.settings = (delta, kernel, codes.shape, codes.dtype)
        return (each * taken).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        c, order, places, share, each, index = ctx.saved_tensors
        delta, kernel, shape, dtype = ctx.settings
        slope = -1 / (
            math.log(2) * share * c.numel()
        )  # of a code's bits over F(k + 1/2) - F(k - 1/2)
        slope = torch.where(each > 0, slope, 0)
        zero = slope.new_zeros(1)
        of_place = torch.cat([zero, each * slope]) - torch.cat([each * slope, zero])
        low, _, high = _reach(c, places, delta)
        density = torch.zeros_like(places)
        moved = torch.zeros_like(c)  # gradients through the histogram
        for number, (first, last) in enumerate(zip(low.tolist(), high.tolist())):
            if first < last:
                k = _density((places[number] - c[first:last]) / delta, kernel) / delta
                density[number] = k.sum()
                moved[first:last] -= of_place[number] * k
        passed = (slope * density.diff())[index]  # through the place that a code is looked up at
        gradient = torch.empty_like(c)
        gradient[order] = moved + passed
        return (grads[0] * gradient).to(dtype).reshape(shape), None, None


def _reach(c: Tensor, places: Tensor, delta: float) -> Ends:
    """For each place the sorted codes within `delta`: the first, the first above the place, the end."""
    found = [torch.searchsorted(c, places + shift, right=False) for shift in (-delta, 0.0, delta)]
    return found[0], found[1], found[2]


def _smoothed(c: Tensor, places: Tensor, delta: float, kernel: Kernel) -> Tensor:
    """F at `places`, from sorted codes."""
    low, middle, high = _reach(c, places, delta)
    n = (high - low).to(PRECISION)

    def between(values: Tensor, first: Tensor, last: Tensor) -> Tensor:
        total = torch.cat([values.new_zeros(1), values.cumsum(0)])
        return total[last] - total[first]

    if kernel == "lin":  # K(u) = (u + 1) / 2
        return low + (n + (n * places - between(c, low, high)) / delta) / 2
    if kernel == "cos":  # K(u) = 1/2 - 1/2 cos(pi (u + 1) / 2)
        w = math.pi / (2 * delta)
        angle = w * places + math.pi / 2
        cosines, sines = between((w * c).cos(), low, high), between((w * c).sin(), low, high)
        return low + (n - angle.cos() * cosines - angle.sin() * sines) / 2

    def squares(first: Tensor, last: Tensor, sign: int) -> Tensor:
        """Sum (1 + sign (x - c) / delta)^2 over the codes first..last."""
        a = 1 + sign * places / delta
        count = (last - first).to(PRECISION)
        linear, square = between(c, first, last), between(c * c, first, last)
        return count * a * a - 2 * sign * a * linear / delta + square / delta**2

    # K(u) = (1 + u)^2 / 2 below 0, that is for codes above the place, and 1 - (1 - u)^2 / 2 above
    return low + squares(middle, high, 1) / 2 + (middle - low) - squares(low, middle, -1) / 2


def _density(u: Tensor, kernel: Kernel) -> Tensor:
    """K'(u) for u in -1..1."""
    if kernel == "lin":
        return torch.full_like(u, 0.5)
    if kernel == "tri":
        return 1 - u.abs()
    return (math.pi / 4) * (u * (math.pi / 2)).cos()
