"""ECGPTQ: one uniform step, codes that are entropy coded, and a stored size that is met."""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.coding.tables import entropy_bits
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics.obs import ordered_factor
from laconic.numerics.obs_coded import (
    LARGEST,
    ZERO,
    coded_sweep,
    counted_lengths,
    expected_lengths,
)
from laconic.tensors import ChannelScale, CompressedTensor, Grouped
from laconic.tensors.combined import Transformed
from laconic.tensors.masked import MaskedCodes
from laconic.tensors.masks import Mask

LADDER = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)  # bits
SAMPLE = 1 << 15  # weights, in whole rows, on which the step is sought
SEARCHES, CORRECTIONS = 8, 8  # sweeps at most
SETTLED = 2  # corrections after which the code lengths are no longer changed
NEAR = 2e-3  # of the wanted bits, at which the search ends
GAUSSIAN = 0.5 * math.log2(
    2 * math.pi * math.e
)  # bits of a normal weight at steps of its deviation
RUNGS = 2  # column steps an octave
COLUMN_BITS, SCALE_BITS = 3.0, 1000.0  # that a column's step takes, and that there are any, about
COARSE, FINE = (
    1.25,
    2.75,
)  # bits at which steps of the columns' own save nothing, and all that they can
OVERHEAD = 2000  # bits of a blob beside its codes, about
FLATTEST, STEEPEST = 0.4, 1.5  # bits for an octave of the step
TOLERATED = 5e-3  # of the wanted bits, missed without a word
SMALLEST_SCALE = float(torch.finfo(torch.bfloat16).tiny)


@dataclass(frozen=True)
class ECGPTQ(LayerMethod):
    """Rounds column by column to a step that, entropy coded, takes the bits that are asked for.

    A uniform grid without ends, whose codes are coded by how often they occur, beats any codebook with
    as many bits in a file. The sweep is that of `gptq`; each weight goes to the grid point that is best
    for error and code length together. The step is found by search, so that `bits` is met.

    Args:
        bits: stored bits a weight, step and tables included; above 0, at most 8.
        share: what has a step of its own: the whole `"tensor"`, which gives the least error, or each
            `"row"`, by its energy.
        columns: whether columns have steps of their own, powers of 2^(1/2) by how much an error in them
            counts; kept as a scale of the input channels. `"auto"`: where that is expected to pay.
        trade: what a bit is worth in squared steps; 0 rounds to nearest.
        order: columns as they are, or by falling energy of their inputs (`"activation"`).
        inputs: whether errors are weighed by the second moment of the inputs, or (`"none"`) all inputs
            count alike and no data is needed.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.

    Example:
        >>> ECGPTQ(bits=2.3).wants
        (SecondMoment(),)
    """

    bits: float = 3.0
    share: Literal["tensor", "row"] = "tensor"
    columns: Literal["auto", "yes", "no"] = "auto"
    trade: float = 0.1
    order: Literal["natural", "activation"] = "activation"
    inputs: Literal["activation", "none"] = "activation"
    damp: float = 0.01

    paper = Paper(None, "GPTQ with entropy-constrained scalar quantization", 2026)
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "entropy coded")

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 8:
            raise UsageError(f"bits must be above 0, at most 8, found {self.bits!r}")
        for name, values in (
            ("share", ("tensor", "row")), ("columns", ("auto", "yes", "no")), ("order", ("natural", "activation")), ("inputs", ("activation", "none")),
        ):  # fmt: skip
            if getattr(self, name) not in values:
                raise UsageError(f"{name} must be one of {values}, found {getattr(self, name)!r}")
        if not self.trade >= 0 or not self.damp > 0:
            raise UsageError(
                f"trade must be at least 0 and damp above 0, found {self.trade!r}, {self.damp!r}"
            )

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),) if self.inputs == "activation" else ()

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) as codes that take `bits` in a file."""
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity, which no grid represents")
        task = _prepare(self, weight, stats)
        value = _fitted(task, self.bits, self.trade)
        missed = 8 * value.stored_bytes / max(1, weight.numel()) / self.bits - 1
        if abs(missed) > TOLERATED:
            stats.note(f"takes {(1 + missed) * self.bits:.3g} bits, not {self.bits:g}")
        return value

    def options(self) -> tuple["ECGPTQ", ...]:
        """0.5 to 6 bits."""
        return tuple(replace(self, bits=bits) for bits in LADDER)

    def between(self, other: Self, share: float) -> Self:
        """The method at bits `share` of the way to those of `other`."""
        return replace(self, bits=round(self.bits + share * (other.bits - self.bits), 6))


class _Task(NamedTuple):
    """A weight as the sweep takes it.

    Attributes:
        like: the weight (out, in, ...).
        rows: (R, C) float32 in the order of the sweep, columns multiplied by `scale`.
        upper: (C, C) of their moment.
        order: (C,) which column comes when.
        scale: (in,) of the input channels, or None.
        shape: (R,) steps of the rows, as multiples of one step.
        keep: (R, C) of a pruned weight, which weights stay; None of others.
        mask: the same, as it is stored.
    """

    like: Tensor
    rows: Tensor
    upper: Tensor
    order: Tensor
    scale: Tensor | None
    shape: Tensor
    keep: Tensor | None
    mask: Mask | None


def _prepare(method: ECGPTQ, weight: Tensor, stats: LayerStats) -> _Task:
    rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
    if method.inputs == "none":
        moment = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    else:
        moment = stats.mean(SecondMoment())
    order, found = ordered_factor(moment, method.order, method.damp)
    stats.note(found.raised(method.damp))
    upper, scale = found.factor, None
    spread = found.factor.diagonal()[order.argsort()]
    if method.columns == "yes" or (
        method.columns == "auto" and _pays(spread, len(rows), method.bits)
    ):
        scale = channel_scale(spread, weight.shape[1])
        columns = scale.float().repeat_interleave(rows.shape[1] // len(scale))[order]
        upper = upper * columns
    else:
        columns = torch.ones_like(rows[0])
    rows = rows[:, order] * columns
    shape = torch.ones_like(rows[:, 0])
    if method.share == "row":
        energy = rows.square().mean(dim=1).sqrt()
        shape = torch.where(energy > 0, energy / energy.max().clamp(min=SMALLEST_SCALE), 1)
    keep = stats.keep()
    return _Task(
        weight,
        rows,
        upper,
        order,
        scale,
        shape,
        None if keep is None else keep[:, order],
        stats.mask,
    )


def channel_scale(spread: Tensor, channels: int) -> Tensor:
    """Scales (channels,) bfloat16 under which all steps are one, from the U_jj (C,) of the columns.

    At equal rate the error is least where `step_j / U_jj` is the same for all columns when steps are
    fine, and where steps are the same when they are coarse; half the way between, as here, was best
    from 1 to 4 bits. Powers of 2^(1/2), with a geometric mean near 1.
    """
    octaves = spread.double().log2().reshape(channels, -1).mean(dim=1) / 2
    rungs = ((octaves - octaves.mean()) * RUNGS).round()
    return torch.exp2(-rungs / RUNGS).to(torch.bfloat16)


def _pays(spread: Tensor, rows: int, bits: float) -> bool:
    """Whether steps of the columns' own save more than they take.

    By the formula for fine steps; as much less as these steps are coarse.
    """
    squares = spread.double().square()
    one = (1 / squares).mean()
    own = (1 / spread.double()).mean() / squares.log().mean().mul(0.5).exp()
    saved = 0.5 * (one / own).log2() * min(1.0, max(0.0, (bits - COARSE) / (FINE - COARSE)))
    taken = (COLUMN_BITS + SCALE_BITS / len(spread)) / max(1, rows)
    return bool(saved > taken)


def _fitted(task: _Task, bits: float, trade: float) -> CompressedTensor:
    """The value whose stored bits come nearest to `bits`."""
    count = max(1, task.rows.numel())
    octave, lengths, slope = _seek(task, max(bits / 2, bits - OVERHEAD / count), trade)
    most = octave + 1  # a tensor that is smaller than its header is not made worse for that
    line = _Line(slope)
    best: tuple[float, CompressedTensor] | None = None
    for correction in range(CORRECTIONS):
        steps, codes = _sweep(task, 1, octave, lengths, trade)
        value = _packed(task, codes, steps)
        gap = 8 * value.stored_bytes / count - bits
        if best is None or abs(gap) < abs(best[0]):
            best = gap, value
        if abs(gap) <= NEAR * bits or (codes == ZERO).all() or (gap > 0 and octave >= most):
            break
        if correction < SETTLED:
            lengths = counted_lengths(_counts(task, 1, codes))
            line = _Line(line.slope)
        octave = min(most, line.next(octave, gap))
    assert best is not None
    return best[1]


class _Line:
    """Finds where bits, which fall with the step, are as wanted: a secant, kept between what is known."""

    def __init__(self, slope: float) -> None:
        self.slope = slope  # bits saved by an octave of the step
        self.last: tuple[float, float] | None = None
        self.low, self.high = -math.inf, math.inf  # octaves with too many bits, and too few

    def next(self, octave: float, gap: float) -> float:
        """Where to look next, after there were `gap` bits too many at `octave`."""
        if self.last is not None and abs(self.last[0] - octave) > 1e-9:
            measured = (self.last[1] - gap) / (octave - self.last[0])
            self.slope = min(STEEPEST, max(FLATTEST, measured))
        self.last = octave, gap
        if gap > 0:
            self.low = max(self.low, octave)
        else:
            self.high = min(self.high, octave)
        ahead = octave + gap / self.slope
        if self.low < ahead < self.high or math.isinf(self.low + self.high):
            return ahead
        return (self.low + self.high) / 2


def _seek(task: _Task, bits: float, trade: float) -> tuple[float, Tensor, float]:
    """log2 of the step at which a sample of rows takes `bits`, lengths there, bits an octave."""
    every = max(1, task.rows.numel() // SAMPLE)
    rows, shape = task.rows[::every], task.shape[::every]
    count = max(1, rows.numel())
    deviation = rows.div(shape[:, None]).square().mean().sqrt().clamp(min=SMALLEST_SCALE)
    least = math.log2(max(float(rows.div(shape[:, None]).abs().max()), SMALLEST_SCALE) / LARGEST)
    octave = max(least, math.log2(float(deviation)) + GAUSSIAN - bits)
    lengths = expected_lengths(2.0 ** (bits - GAUSSIAN)).to(rows.device)
    line = _Line(1.0)
    for _ in range(SEARCHES):
        _, codes = _sweep(task, every, octave, lengths, trade)
        counts = _counts(task, every, codes)
        found = float(entropy_bits(counts.cpu().numpy())) / count
        lengths = counted_lengths(counts)
        near = abs(found - bits) <= NEAR * bits and line.last is not None
        if near or found == 0:
            break
        line = _Line(line.slope) if line.low > line.high else line
        octave = max(least, line.next(octave, found - bits))
    return octave, lengths, line.slope


def _sweep(
    task: _Task, every: int, octave: float, lengths: Tensor, trade: float
) -> tuple[Tensor, Tensor]:
    """Steps, as they are stored, and codes (R, C), of each `every`th row."""
    steps = (task.shape[::every].double() * 2.0**octave).to(torch.bfloat16).float()
    steps.clamp_(min=SMALLEST_SCALE)
    keep = None if task.keep is None else task.keep[::every]
    found = coded_sweep(task.rows[::every], task.upper, steps, lengths, trade=trade, keep=keep)
    assert found.codes is not None
    return steps, found.codes


def _counts(task: _Task, every: int, codes: Tensor) -> Tensor:
    """How often each code occurs; codes of pruned weights are not stored."""
    stored = codes if task.keep is None else codes[task.keep[::every]]
    return torch.bincount(stored.flatten().long(), minlength=2 * ZERO)


def _packed(task: _Task, codes: Tensor, steps: Tensor) -> CompressedTensor:
    """What is stored: as few bits in memory as the farthest code needs."""
    distance = codes[:, task.order.argsort()].int() - ZERO
    reach = int(distance.abs().max()) if distance.numel() else 0
    width = max(2, reach.bit_length() + 1)
    inner: CompressedTensor = Grouped.from_codes(
        (distance + 2 ** (width - 1)).reshape(task.like.shape),
        (steps if len(set(steps.tolist())) > 1 else steps[:1])[:, None], None,
        bits=width, group=max(1, codes.shape[1]), dtype=task.like.dtype,
    )  # fmt: skip
    if task.mask is not None:
        inner = MaskedCodes.of(inner, task.mask)
    if task.scale is None:
        return inner
    return Transformed(inner, ChannelScale(task.scale))
