"""REQuant: ranges by golden-section search, of a grid that may be bent so that small weights have more levels."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import InputNorm, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.golden import golden_section
from laconic.tensors import CompressedTensor, Dense, IntQuantizer
from laconic.tensors.codebook import Codebook
from laconic.tensors.integer import reaching
from laconic.tensors.packing import grouped, spread

POWERS = (1.0, 0.85, 0.75, 0.65, 0.5)  # of which a layer takes one, where none is given
SMALLEST_RANGE = 0.05  # of the greatest magnitude
GRID, STEPS = 12, 8  # points of the search before it narrows, and steps that narrow it
SMALLEST = float(torch.finfo(torch.bfloat16).tiny)


@dataclass(frozen=True)
class REQuant(LayerMethod):
    """Rounds to levels k^(1/p) of a range that golden-section search finds for each row or group.

        u = (|w| / M)^p sign(w);  levels of u are evenly spaced on [-a, a];  a minimises the squared error of w

    M is the greatest magnitude. With p = 1 levels are even; below, they lie denser near zero, where most
    weights are. Nothing but the range is stored for each group: it is the scale of one table for the layer.

    Args:
        bits: 2 to 8.
        group: columns that share a range, `"row"` or `"tensor"`.
        power: p, above 0 and at most 1; 0 takes for each layer the best of 1, 0.85, 0.75, 0.65 and 0.5.
        inputs: `"activation"` weighs errors by the energy of the column's input, `"none"` does not and
            needs no data.

    Example:
        >>> import torch
        >>> REQuant(bits=2, power=1.0).compress_weight(torch.tensor([[2.0, -0.9, 1.1]])).dense()
        tensor([[ 2., -1.,  1.]])
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = "row"
    power: float = 0.0
    inputs: Literal["activation", "none"] = "none"

    paper = Paper(
        109, "Quantization range estimation for convolutional neural networks", 2025, "2510.04044"
    )
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "non-uniform", "range estimation")

    def __post_init__(self) -> None:
        IntQuantizer(self.bits, self.group)  # checks both
        if not 0 <= self.power <= 1:
            raise UsageError(
                f"power must be above 0 and at most 1, or 0 to choose, found {self.power!r}"
            )
        if self.inputs not in ("activation", "none"):
            raise UsageError(f"inputs must be 'activation' or 'none', found {self.inputs!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (InputNorm(),) if self.inputs == "activation" else ()

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) on its levels."""
        check_finite("the weight", weight)
        if not weight.numel():
            return Dense(weight.clone())
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        columns = max(1, rows.shape[1])
        whole = self.group == "tensor"
        size = columns if isinstance(self.group, str) else min(self.group, columns)
        matter = torch.ones_like(rows[:1])
        if self.wants and stats is not None:
            energy = stats.input_norm().square().to(rows)
            matter = (energy / energy.max().clamp(min=SMALLEST)).unsqueeze(0)
        values = rows.reshape(1, 1, -1) if whole else grouped(rows, size)  # (R, G, n)
        matter = matter.expand_as(rows).reshape(1, 1, -1) if whole else grouped(matter, size)
        best: tuple[Tensor, Tensor] | None = None
        least = torch.inf
        for power in (self.power,) if self.power else POWERS:
            levels = table(self.bits, power, weight.device)
            scale, losses = _ranges(values, matter, levels, power)
            lost = float(losses.double().sum())
            if lost < least:
                best, least = (levels, scale), lost
        assert best is not None
        levels, scale = best
        spread_scale = scale.expand(len(rows), 1) if whole else scale
        codes = _codes(rows / spread(spread_scale.float(), columns, size), levels)
        return Codebook.from_codes(
            codes, levels.to(torch.bfloat16).reshape(1, -1, 1), shape=weight.shape, dtype=weight.dtype,
            scale=Dense(spread_scale.contiguous()), scale_block=size,
        )  # fmt: skip

    def options(self) -> tuple["REQuant", ...]:
        """2 to 8 bits, per row."""
        return tuple(replace(self, bits=bits) for bits in range(2, 9))


def table(bits: int, power: float, device: torch.device | str = "cpu") -> Tensor:
    """The levels sign(k) |k|^(1/p) for k = -2^(bits-1) up to 2^(bits-1) - 1, float32, as bfloat16 has them.

    Example:
        >>> table(3, 0.5)
        tensor([-16.,  -9.,  -4.,  -1.,   0.,   1.,   4.,   9.])
    """
    half = 2 ** (bits - 1)
    k = torch.arange(-half, half, dtype=torch.float64, device=device)
    return (k.sign() * k.abs() ** (1 / power)).to(torch.bfloat16).float()


def _ranges(values: Tensor, matter: Tensor, levels: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Scales (R, G) bfloat16 of the levels, with which each group loses least, and what it loses.

    On one side of zero there is one level more: that of the negative values, or with a negative scale that of
    the positive ones. Both are searched.
    """
    low, high = values.amin(dim=-1).clamp(max=0), values.amax(dim=-1).clamp(min=0)
    sides, upwards = (float(-levels[0]), float(levels[-1])), high >= -low

    def searched(most: float, least: float, negative: Tensor) -> tuple[Tensor, Tensor]:
        widest = reaching(low, high, most, least)

        def scale_of(share: Tensor) -> Tensor:
            size = (widest * share ** (1 / power)).to(torch.bfloat16).clamp(min=SMALLEST)
            return torch.where(negative, -size, size)

        share = golden_section(
            lambda a: _losses(values, matter, levels, scale_of(a)), SMALLEST_RANGE, 1.0,
            tuple(widest.shape), grid=GRID, steps=STEPS, device=values.device,
        )  # fmt: skip
        scale = scale_of(share)
        return scale, _losses(values, matter, levels, scale)

    (first, lost), (second, lost_too) = searched(*sides, upwards), searched(*sides[::-1], ~upwards)
    return torch.where(lost_too < lost, second, first), torch.minimum(lost, lost_too)


def _losses(values: Tensor, matter: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """(R, G) squared errors, weighted."""
    x = values / scale.float().unsqueeze(-1)
    off = (x - _nearest(x, levels)).square() * matter
    return off.sum(dim=-1) * scale.float().square()


def _codes(x: Tensor, levels: Tensor) -> Tensor:
    """The number of the level nearest to each of `x`."""
    if _even(levels):  # rounding is 8 times as fast as a search among them
        return _nearest(x, levels).long() + len(levels) // 2
    return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2)


def _nearest(x: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to each of `x`."""
    if _even(levels):
        return x.round().clamp_(float(levels[0]), float(levels[-1]))
    return levels[_codes(x, levels)]


def _even(levels: Tensor) -> bool:
    return bool(levels[0] == -(len(levels) // 2))
