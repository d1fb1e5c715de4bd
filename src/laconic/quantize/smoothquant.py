"""SmoothQuant: shift the difficulty of rounding from inputs to weights, channel by channel."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import AbsMax, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.quantize.activations import behind, no_place, static_range
from laconic.tensors import (
    ChannelScale,
    CompressedTensor,
    IntQuantizer,
    Quantizer,
)
from laconic.tensors.stored import Record


@dataclass(frozen=True)
class SmoothQuant(LayerMethod):
    """Scales channels until inputs and weights are equally hard to round, and rounds both to integers.

        s_j = max|x_j|^alpha / max|w_j|^(1 - alpha);  x_j / s_j and w_j s_j are rounded

    The scales stand before the layer as a transform (2 bytes a channel): each layer has the best for
    itself, at the price of one product a channel. The paper folds one for all layers of an input into
    the norm before them. Any quantizer that follows in the chain rounds the smoothed weights in place
    of this one: `[SmoothQuant(), GPTQ(bits=4, group="row")]` is W4A8.

    Convolutions, fused experts and embeddings are rounded without smoothing, which the report notes.

    Args:
        alpha: how much goes from inputs to weights, 0 to 1.
        bits: of weights and inputs, 2 to 8.
        group: of the weights: columns that share a scale, `"row"` or `"tensor"`.
        inputs: `"token"`, a range for each token as it comes; or `"static"`, one for all tokens from
            calibration, which is faster and loses more.

    Example:
        >>> smoothing(torch.tensor([[1.0, 4.0]]), torch.tensor([16.0, 4.0]), alpha=0.5)
        tensor([4., 1.])
    """

    alpha: float = 0.5
    bits: int = 8
    group: int | Literal["row", "tensor"] = "row"
    inputs: Literal["token", "static"] = "token"

    paper = Paper(None, "SmoothQuant: post-training quantization for LLMs", 2022, "2211.10438")
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weights and activations", "uniform", "transform")
    changes_inputs = True

    def __post_init__(self) -> None:
        self.quantizer()
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be in 0..1, found {self.alpha!r}")
        if self.inputs not in ("token", "static"):
            raise UsageError(f"inputs must be 'token' or 'static', found {self.inputs!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (AbsMax(),)

    def quantizer(self) -> IntQuantizer:
        """The grid of the weights as a quantizer; checks the settings."""
        return IntQuantizer(self.bits, self.group)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...), as it stands behind its scales, on its grid."""
        return self.quantizer().quantize(weight)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """The layer with scales, rounded weights and an activation quantizer."""
        transform, scale = record.transform, None
        folded = weight.float() if transform is None else transform.fold(weight.float())
        reason = no_place(stats.layer)
        if reason:
            stats.note(f"not smoothed: {reason}")
        else:
            smooth = ChannelScale(
                smoothing(folded, greatest(stats).to(folded), self.alpha).bfloat16()
            )
            folded, scale = smooth.fold(folded), smooth.scale.float()
            transform = behind(transform, smooth)
        quantizer = self.quantizer()
        grid = quantizer.fit(folded)
        value = quantizer.pack(quantizer.encode(folded, grid), grid, weight)
        return Record(value, transform, self._activation(stats, scale))

    def _activation(self, stats: LayerStats, scale: Tensor | None) -> Quantizer[Any] | None:
        """What rounds the inputs, divided by `scale` if there is one."""
        if stats.layer.kind == "embedding":
            return None
        static = self.inputs == "static"
        found = static_range(stats, self.bits, True, scale) if static else None
        return found or IntQuantizer(self.bits, "row")


def greatest(stats: LayerStats) -> Tensor:
    """(in,) the greatest magnitude that calibration saw in every channel of a layer's inputs."""
    sums = stats[AbsMax()]
    return torch.maximum(sums["low"].abs(), sums["high"].abs())


def smoothing(weight: Tensor, most: Tensor, alpha: float) -> Tensor:
    """The scale of each input channel, (in,).

    Args:
        weight: (out, in).
        most: (in,) greatest magnitudes of the inputs.
        alpha: their exponent; that of the weights' is 1 - alpha.

    Returns:
        (in,) positive; 1 for channels of which inputs or weights are all 0.
    """
    heaviest = weight.abs().amax(dim=0)
    scale = most**alpha / heaviest ** (1 - alpha)
    return torch.where((most > 0) & (heaviest > 0), scale, 1.0)
