"""Round to nearest: the baseline that every quantization method must beat."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.method import LayerMethod, Needs, Paper
from laconic.tensors import CompressedTensor, IntQuantizer


@dataclass(frozen=True)
class RTN(LayerMethod):
    """Rounds every weight to the nearest point of a uniform grid; needs no data.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: `"minmax"` spans the extremes of a group; `"mse"` clips them where that makes its
            squared error least (golden section).

    Example:
        >>> import torch
        >>> RTN(2, "row", range="minmax").compress_weight(torch.tensor([[2.0, -0.9]])).dense().tolist()
        [[2.0, -1.0]]
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = 64
    symmetric: bool = True
    range: Literal["minmax", "mse"] = "mse"

    paper = Paper(None, "Integer quantization for deep learning inference", 2020, "2004.09602")
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "weight-only", "uniform")

    def __post_init__(self) -> None:
        self.quantizer()

    def quantizer(self) -> IntQuantizer:
        """The grid as a quantizer; checks the settings."""
        return IntQuantizer(self.bits, self.group, self.symmetric, self.range)

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) on its grid."""
        return self.quantizer().quantize(weight)

    def options(self) -> tuple["RTN", ...]:
        """2 to 8 bits, each per row and in groups of 64."""
        groups: tuple[int | Literal["row"], ...] = ("row", 64)
        return tuple(replace(self, bits=b, group=g) for b in range(2, 9) for g in groups)
