"""Floats of 4, 6 or 8 bits, to the nearest."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.method import LayerMethod, Needs, Paper
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

    def options(self) -> tuple["Floats", ...]:
        """4 to 8 bits."""
        names = ("mxfp4", "nvfp4", "mxfp6", "mxfp8")
        return tuple(replace(self, format=name, group=None) for name in names)
