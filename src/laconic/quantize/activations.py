"""Activations: the inputs of layers are rounded too, so that products of small numbers remain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from laconic.calibrate.histogram import Histogram, rounding_error
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import AbsMax, Statistic
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.models.layout import Layer
from laconic.numerics.golden import golden_section
from laconic.tensors import (
    CompressedTensor,
    Dense,
    FloatQuantizer,
    InputTransform,
    IntQuantizer,
    Quantizer,
    StaticIntQuantizer,
)
from laconic.tensors.integer import Group
from laconic.tensors.stored import Record
from laconic.tensors.transforms import Chain

#: What `FloatQuantizer` calls a float format of so many bits.
FLOATS = {
    "fp": {8: "e4m3", 6: "e2m3", 4: "e2m1"},
    "mxfp": {8: "mxfp8", 6: "mxfp6", 4: "mxfp4"},
    "nvfp": {4: "nvfp4"},
}

LEAST_SHARE = 0.02  # of the whole range
GRID, STEPS = 24, 14  # points of the search before it narrows, and steps that narrow it

Ends = tuple[float, float]


@dataclass(frozen=True)
class Activations(LayerMethod):
    """Rounds the inputs of every layer as they come; weights stay as the chain has them.

    A link of a chain: `[Hadamard(), GPTQ(bits=4, group="row"), Activations(bits=4)]` is W4A4. Inputs
    are rounded behind a transform, where one stands before the layer. Products are still computed in
    the dtype of the model: what is shown is the loss, not the speed of small products.

    Args:
        bits: 2 to 8 of integers; 4, 6 or 8 of floats.
        format: `"int"`; `"fp"`, floats with a bfloat16 scale (E4M3, E2M3, E2M1); `"mxfp"`, the same floats
            with a power of two for each 32 channels; or `"nvfp"`, 4 bits with an E4M3 scale for each 16.
        group: channels that share a scale; or `"token"`, all of one token (pixel of an image).
        symmetric: integer grids around zero; otherwise between the extremes, with a zero point.
        range: `"dynamic"` takes the scales from the inputs as they come and needs no data;
            `"static"` takes one range for all tokens from calibration inputs, integers only.
        ends: of a static range: `"mse"`, where the squared error over a histogram of the calibration
            inputs is least (golden section, as REQuant); or `"minmax"`, their extremes.

    Example:
        >>> Activations(bits=4, format="mxfp").quantizer()
        FloatQuantizer(format='mxfp4', group=None, range='minmax')
    """

    bits: int = 8
    format: Literal["int", "fp", "mxfp", "nvfp"] = "int"
    group: int | Literal["token"] = "token"
    symmetric: bool = True
    range: Literal["dynamic", "static"] = "dynamic"
    ends: Literal["mse", "minmax"] = "mse"

    paper = Paper(None, "Integer quantization for deep learning inference", 2020, "2004.09602")
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "activations", "uniform")

    def __post_init__(self) -> None:
        if self.range not in ("dynamic", "static"):
            raise UsageError(f"range must be 'dynamic' or 'static', found {self.range!r}")
        if self.ends not in ("mse", "minmax"):
            raise UsageError(f"ends must be 'mse' or 'minmax', found {self.ends!r}")
        if self.group != "token" and not isinstance(self.group, int):
            raise UsageError(f"group must be a number >= 1 or 'token', found {self.group!r}")
        if self.range == "static" and (self.format, self.group) != ("int", "token"):
            raise UsageError(
                "a static range is of integers and serves all channels: leave out format and group"
            )
        self.quantizer()

    @property
    def wants(self) -> tuple[Statistic, ...]:
        if self.range == "dynamic":
            return ()
        return (AbsMax(), Histogram()) if self.ends == "mse" else (AbsMax(),)

    def quantizer(self) -> Quantizer[Any]:
        """The quantizer of dynamic ranges; checks the settings."""
        group: Group = "row" if self.group == "token" else self.group
        if self.format == "int":
            return IntQuantizer(self.bits, group, self.symmetric)
        if self.format not in FLOATS:
            raise UsageError(f"format must be 'int', 'fp', 'mxfp' or 'nvfp', found {self.format!r}")
        if self.bits not in FLOATS[self.format]:
            known = " or ".join(map(str, sorted(FLOATS[self.format])))
            raise UsageError(f"floats of {self.format} have {known} bits, found bits={self.bits!r}")
        if self.format == "fp":
            return FloatQuantizer(FLOATS["fp"][self.bits], group)
        if self.group != "token":
            raise UsageError(
                f"{self.format} says how many channels share a scale: leave out group={self.group!r}"
            )
        return FloatQuantizer(FLOATS[self.format][self.bits])

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` as it is."""
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity")
        return Dense(weight)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """`record` with an activation quantizer."""
        if stats.layer.kind == "embedding":
            stats.note("a table is looked up, not multiplied: it has no inputs to round")
            return record
        found = static_range(stats, self.bits, self.symmetric) if self.range == "static" else None
        if found is not None and self.ends == "mse":
            found = least_error(found, stats[Histogram()]["counts"])
        return replace(record, activation=found or self.quantizer())


def static_range(
    stats: LayerStats, bits: int, symmetric: bool, scale: Tensor | None = None
) -> StaticIntQuantizer | None:
    """One range for all inputs that calibration saw, divided by `scale` (in,) if there is one.

    Returns:
        None where there is no such range, which is noted.
    """
    if stats.layer.part is not None:
        stats.note("experts share an input of which each sees a part: its range is dynamic")
        return None
    low, high = (
        sums if scale is None else sums / scale
        for sums in (stats[AbsMax()]["low"], stats[AbsMax()]["high"])
    )
    ends = min(0.0, low.min().item()), max(0.0, high.max().item())
    if ends[0] == ends[1]:
        stats.note("all calibration inputs are 0: their range is dynamic")
        return None
    return StaticIntQuantizer(bits, *ends, symmetric)


def least_error(full: StaticIntQuantizer, counts: Tensor) -> StaticIntQuantizer:
    """The range within that of `full` with which what was counted loses least, in squared error.

    Both ends are first moved in by one factor, then, where the grid has a zero point, each by its own;
    all by golden section.

    Args:
        full: the whole range of what was counted.
        counts: (2, bins) of a `Histogram`.

    Source: REQuant (Yang et al., 2025), with an end for either sign.
    """
    ends = full.low, full.high
    for moved in (
        ((True, True),) if full.symmetric else ((True, True), *((True, False), (False, True)) * 2)
    ):

        def within(share: Tensor, ends: Ends = ends, moved: tuple[bool, bool] = moved) -> Ends:
            low, high = (
                end * share.item() if moves else end for end, moves in zip(ends, moved, strict=True)
            )
            return low, high

        def loss(share: Tensor, within: Callable[[Tensor], Ends] = within) -> Tensor:
            low, high = within(share)
            grid = replace(full, low=low, high=high).fit(counts)
            first, last = full.code_range
            zero = grid.zero.reshape(1)
            return rounding_error(counts, grid.scale.reshape(1), first - zero, last - zero)

        ends = within(golden_section(loss, LEAST_SHARE, 1.0, (1,), grid=GRID, steps=STEPS))
    return replace(full, low=ends[0], high=ends[1])


def no_place(layer: Layer) -> str:
    """Why no transform can stand before `layer`, where its activation quantizer would see it.

    Returns:
        A sentence for the report; empty for layers where one can.
    """
    if layer.kind == "embedding":
        return "a table is looked up, not multiplied"
    if layer.part is not None:
        return "experts share an input, before which none of them has a transform of its own"
    if layer.kind == "conv":
        return "a convolution may have groups of channels, which no transform may mix"
    return ""


def behind(first: InputTransform | None, second: InputTransform) -> InputTransform:
    """`second` after what stands before a layer already, if anything does."""
    if first is None:
        return second
    return Chain((*(first.parts if isinstance(first, Chain) else (first,)), second))
