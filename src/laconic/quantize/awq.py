"""AWQ: scale up the columns whose inputs are large before rounding, as far as the output gains."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics.golden import golden_section
from laconic.numerics.parallel import one_thread
from laconic.quantize.activations import behind
from laconic.tensors import ChannelScale, CompressedTensor, IntQuantizer, Transformed
from laconic.tensors.integer import SMALLEST_CLIP, WEIGHTS_AT_ONCE, Grid
from laconic.tensors.packing import check_whole, grouped
from laconic.tensors.stored import Record

ROWS = 1024  # of a layer, evenly spread, on which scales are compared: bounds the time
SMALLEST = 1e-4  # of the mean importance; channels without input would make scales of 0

Fit = Callable[[Tensor, Tensor], Grid]  # rows (R, C), the scale (C,) that is in them


@dataclass(frozen=True)
class AWQ(LayerMethod):
    """Scales input channels by a power of their size, so that what matters is rounded more finely.

        s = rms(x)^alpha / sqrt(max * min);  W' = round(W diag(s)) diag(1/s)
        alpha in 0..1 with the least  tr((W' - W) H (W' - W)^T),  H = E[x x^T]

    The loss is the squared error of the layer's outputs on the calibration data, in closed form. The
    paper takes mean|x| for the size of a channel; the root mean square is on the diagonal of H.

    The scales stand before the layer as a transform (2 bytes a channel): each layer has its own, at
    the price of one product a channel. The paper folds one for all layers of an input into the norm
    before them. A layer for which no scale is better than none has none. What follows in the chain
    works on the scaled weight: `[AWQ(), GPTQ()]` rounds it with error feedback.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point, as in the
            paper.
        range: how a group's range is found: `"minmax"`, `"mse"`, or `"output"`, clipped where that
            makes the error of the group's share of the output least (the paper's).
        grid: how many alphas are tried, at least 2.

    Example:
        >>> AWQ(bits=3).wants
        (SecondMoment(),)
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = 64
    symmetric: bool = True
    range: Literal["minmax", "mse", "output"] = "output"
    grid: int = 20

    paper = Paper(None, "AWQ: activation-aware weight quantization", 2023, "2306.00978")
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "transform")
    changes_inputs = True

    def __post_init__(self) -> None:
        if self.range not in ("minmax", "mse", "output"):
            raise UsageError(f"range must be 'minmax', 'mse' or 'output', found {self.range!r}")
        check_whole("grid", self.grid, 2)
        self.quantizer()

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def quantizer(self) -> IntQuantizer:
        """The grid as a quantizer, with ranges by the extremes for `"output"`; checks the settings."""
        range_ = "minmax" if self.range == "output" else self.range
        return IntQuantizer(self.bits, self.group, self.symmetric, range_)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) on the grid of its scaled columns; with the scale within, if any."""
        value, scale = self.scaled(weight, weight, stats)
        return value if scale is None else Transformed(value, scale)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """The layer with its scale before it; a convolution's is within its value."""
        before = record.transform
        folded = weight.float() if before is None else before.fold(weight.float())
        value, scale = self.scaled(folded, weight, stats)
        if scale is None:
            return replace(record, weight=value)
        if stats.layer.kind == "conv":
            return replace(record, weight=Transformed(value, scale))
        return replace(record, weight=value, transform=behind(before, scale))

    def scaled(
        self, weight: Tensor, like: Tensor, stats: LayerStats
    ) -> tuple[CompressedTensor, ChannelScale | None]:
        """The scaled weight on its grid, and the scale; None where none is better than none.

        Args:
            weight: (out, in, ...).
            like: has the dtype of the result.
            stats: with the second moment of the inputs.

        Raises:
            BadWeights: the weight holds NaN or infinity.
            DataError: there is no second moment.
        """
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity, which no grid represents")
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        moment = stats.mean(SecondMoment()).to(rows)
        taps = rows.shape[1] // weight.shape[1]
        size = moment.diagonal().reshape(-1, taps).mean(dim=1).sqrt()  # (in,)
        quantizer, fit = self.quantizer(), self._fit(moment)
        with one_thread():
            chosen = search_scale(rows, moment, size, fit, quantizer, self.grid)
            scale = chosen.repeat_interleave(taps)  # (C,)
            found = fit(rows * scale, scale)
        codes = quantizer.encode(rows * scale, found).reshape(weight.shape)
        value = quantizer.pack(codes, found, like)
        return value, None if (chosen == 1).all() else ChannelScale(chosen.bfloat16())

    def _fit(self, moment: Tensor) -> Fit:
        """What finds the grid of scaled rows under the second moment (C, C)."""
        quantizer = self.quantizer()
        if self.range != "output":
            return lambda rows, scale: quantizer.fit(rows)
        columns = moment.shape[0]
        group = min(self.group, columns) if isinstance(self.group, int) else columns
        blocks = diagonal_blocks(moment, group)
        return lambda rows, scale: output_grid(rows, scale, blocks, quantizer)

    def options(self) -> tuple["AWQ", ...]:
        """2 to 8 bits, each per row and in groups of 64."""
        groups: tuple[int | Literal["row"], ...] = ("row", 64)
        return tuple(replace(self, bits=b, group=g) for b in range(2, 9) for g in groups)


def search_scale(
    rows: Tensor, moment: Tensor, size: Tensor, fit: Fit, quantizer: IntQuantizer, steps: int
) -> Tensor:
    """The scale of each channel, (in,) float32 that bfloat16 can hold, with the least output error.

    Args:
        rows: (R, C); at most `ROWS` of them, evenly spread, decide.
        moment: (C, C) of the inputs.
        size: (in,) of the inputs; of a convolution C is `in` times the positions of its kernel.
        fit: finds the grid of scaled rows.
        quantizer: rounds to it.
        steps: how many powers of `size` from 0 to 1 are tried.
    """
    rows = rows[:: -(-rows.shape[0] // ROWS)]
    taps = rows.shape[1] // size.numel()
    size = (size / size.mean().clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=SMALLEST)
    best, least = torch.ones_like(size), torch.inf
    for alpha in torch.linspace(0, 1, steps).tolist():
        power = size**alpha
        channel = (power / (power.max() * power.min()).sqrt()).bfloat16().float()
        scale = channel.repeat_interleave(taps)
        scaled = rows * scale
        grid = fit(scaled, scale)
        lost = quantizer.decode(quantizer.encode(scaled, grid), grid) / scale - rows
        error = ((lost @ moment) * lost).sum(dtype=torch.float64).item()
        if error < least:
            best, least = channel, error
    return best


def diagonal_blocks(moment: Tensor, group: int) -> Tensor:
    """(G, group, group): the part of `moment` (C, C) within each group; a ragged end has zeros.

    A group without inputs counts as having uncorrelated ones, so that its weights decide.
    """
    groups = -(-moment.shape[0] // group)
    blocks = F.pad(moment, (0, -moment.shape[0] % group) * 2).reshape(groups, group, groups, group)
    blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    silent = blocks.diagonal(dim1=1, dim2=2).sum(dim=1) == 0
    return torch.where(silent[:, None, None], torch.eye(group).to(moment), blocks)


def output_grid(rows: Tensor, scale: Tensor, blocks: Tensor, quantizer: IntQuantizer) -> Grid:
    """The grid of each group, clipped where its share of the output's error is least.

    The error e of a group costs `e H_g e^T`, with H_g the group's block of the second moment: what
    the paper measures by running data through each group alone.

    Args:
        rows: (R, C), scaled.
        scale: (C,) that they were multiplied by.
        blocks: (G, group, group) of the inputs' second moment.
        quantizer: of which only the ranges are found in another way.
    """
    if quantizer.group == "tensor":
        return _clipped(rows, scale, blocks, quantizer)
    parts = torch.split(rows, max(1, WEIGHTS_AT_ONCE // max(1, rows.shape[1])))
    grids = [_clipped(part, scale, blocks, quantizer) for part in parts]
    return Grid(
        torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids]), grids[0].group
    )


def _clipped(rows: Tensor, scale: Tensor, blocks: Tensor, quantizer: IntQuantizer) -> Grid:
    """`output_grid` of some rows."""
    whole = quantizer.group == "tensor"
    group = blocks.shape[1]
    values = grouped(rows, group)  # (R, G, group)
    low, high = values.amin(dim=-1).clamp(max=0), values.amax(dim=-1).clamp(min=0)
    if whole:
        low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
    # errors are counted in steps of the unclipped grid: their squares could overflow
    step = quantizer.grid(low, high, group).scale
    steps = values / step.unsqueeze(-1)
    weight = grouped(1 / scale[None], group)  # (1, G, group)

    def loss(clip: Tensor) -> Tensor:
        grid = quantizer.grid(low * clip, high * clip, group)
        ratio, zero = (grid.scale / step).unsqueeze(-1), grid.zero.unsqueeze(-1)
        codes = (steps / ratio).round_().add_(zero).clamp_(*quantizer.code_range)
        lost = codes.sub_(zero).mul_(ratio).sub_(steps).mul_(weight)
        error = ((lost.transpose(0, 1) @ blocks).transpose(0, 1) * lost).sum(dim=-1)  # (R, G)
        return error.sum(dim=0, keepdim=True) if whole else error

    clip = golden_section(loss, SMALLEST_CLIP, 1.0, tuple(low.shape), device=low.device)
    return quantizer.grid(low * clip, high * clip, group)
