"""Floats of 4, 6 or 8 bits: to the nearest, or column by column with error feedback."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.obs import block_sweep, ordered_factor
from laconic.tensors import CompressedTensor, FloatQuantizer


@dataclass(frozen=True)
class Floats(LayerMethod):
    """Rounds every weight to the nearest float of 4, 6 or 8 bits with shared scales; needs no data.

    Args:
        format: `mxfp4`, `mxfp6`, `mxfp8` (a power of two for 32 columns), `nvfp4` (an E4M3 scale for 16), or
            the plain `e4m3`, `e5m2`, `e3m2`, `e2m3` and `e2m1` with a bfloat16 scale.
        group: columns that share a scale, `"row"` or `"tensor"`; of the plain formats alone, per row by
            default.
        range: `"minmax"` takes scales from the format's rule; `"mse"` the multiple of it, from half to
            twice, that makes the squared error of the block least.

    Example:
        >>> import torch
        >>> Floats("mxfp4").compress_weight(torch.tensor([[6.0, -3.2, 1.3, 0.2]])).dense()
        tensor([[ 6.0000, -3.0000,  1.5000,  0.0000]])
    """

    format: str = "nvfp4"
    group: int | Literal["row", "tensor"] | None = None
    range: Literal["minmax", "mse"] = "mse"

    paper = Paper(None, "Microscaling data formats for deep learning", 2023, "2310.10537")
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "weight-only", "floating point")

    def __post_init__(self) -> None:
        self.quantizer()

    def quantizer(self) -> FloatQuantizer:
        """The format as a quantizer; checks the settings."""
        return FloatQuantizer(self.format, self.group, self.range)

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) as floats."""
        return self.quantizer().quantize(weight)

    def options(self) -> tuple[Self, ...]:
        """4 to 8 bits."""
        names = ("mxfp4", "nvfp4", "mxfp6", "mxfp8")
        return tuple(replace(self, format=name, group=None) for name in names)


@dataclass(frozen=True)
class GPTQFloats(Floats):
    """Rounds to floats column by column, later columns making up for the error of earlier ones.

    The sweep of `gptq` onto the scales of `fp`, which are found on the weight before.

    Args:
        format: as of `fp`.
        group: as of `fp`.
        range: as of `fp`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        order: columns as they are, or by falling energy of their inputs (`"activation"`).

    Example:
        >>> GPTQFloats("mxfp4").wants
        (SecondMoment(),)
    """

    damp: float = 0.01
    order: Literal["natural", "activation"] = "activation"

    paper = Paper(None, "Bridging the gap between promise and performance for microscaling FP4", 2025,
                  "2509.23202")  # fmt: skip
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "floating point", "error feedback")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damp > 0:
            raise UsageError(f"damp must be above 0, found {self.damp!r}")
        if self.order not in ("natural", "activation"):
            raise UsageError(f"order must be 'natural' or 'activation', found {self.order!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) as floats."""
        assert stats is not None
        check_finite("the weight", weight)
        quantizer, keep = self.quantizer(), stats.keep()
        params = quantizer.fit(weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        columns, factor = ordered_factor(stats.mean(SecondMoment()), self.order, self.damp)
        stats.note(factor.raised(self.damp))
        scale = quantizer.scales(params, rows.shape[1]).expand_as(rows)
        table = quantizer.element.table(rows.device)
        codes = torch.zeros_like(rows, dtype=torch.uint8)

        def fix(left: Tensor, first: int) -> Tensor:
            at = columns[first : first + 1]
            found = quantizer.element.encode(left / scale[:, at])
            if keep is not None:
                found = found.masked_fill(~keep[:, at], 0)
            codes[:, at] = found
            return table[found.int()] * scale[:, at]

        block_sweep(rows[:, columns], factor.factor, fix)
        return quantizer.pack(codes.reshape(weight.shape), params, weight)
