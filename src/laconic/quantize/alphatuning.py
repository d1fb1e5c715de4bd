"""BCQ: weights as sums of scaled signs, whose scales alone can be tuned for a task afterwards."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.method import LayerMethod, Needs, Paper
from laconic.tensors import CompressedTensor
from laconic.tensors.binary_quantizer import BinaryQuantizer


@dataclass(frozen=True)
class BCQ(LayerMethod):
    """Approximates each group of a row by a sum of scaled sign vectors (binary coding); needs no data.

        W ~ sum_i alpha_i B_i,  B_i of -1 and 1;  scales by least squares and signs by the nearest level in turn

    Args:
        bits: planes of signs, 1 to 8.
        group: columns that share the scales, a multiple of 8, or `"row"`.
        offset: whether each group has a constant as well.
        iterations: of the refinement, at least 0.

    Example:
        >>> import torch
        >>> BCQ(bits=2).compress_weight(torch.tensor([[3.0, -3.0, 1.0, -1.0]])).dense()
        tensor([[ 3., -3.,  1., -1.]])
    """

    bits: int = 3
    group: int | Literal["row"] = "row"
    offset: bool = False
    iterations: int = 15

    paper = Paper(
        119, "AlphaTuning: quantization-aware parameter-efficient adaptation", 2022, "2210.03858"
    )
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "weight-only", "binary coding")

    def __post_init__(self) -> None:
        self.quantizer()

    def quantizer(self) -> BinaryQuantizer:
        """Binary coding as a quantizer; checks the settings."""
        return BinaryQuantizer(self.bits, self.group, self.offset, self.iterations)

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) as planes of signs and scales."""
        return self.quantizer().quantize(weight)

    def options(self) -> tuple["BCQ", ...]:
        """1 to 5 planes, per row and in groups of 128."""
        groups: tuple[int | Literal["row"], ...] = ("row", 128)
        return tuple(replace(self, bits=b, group=g) for b in range(1, 6) for g in groups)
