"""WUSH: a transform for each block of channels under which inputs and weights are equally easy to round."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.balance import balanced_transforms
from laconic.numerics.hadamard import hadamard_block
from laconic.quantize.activations import behind, no_place
from laconic.tensors import CompressedTensor, Dense, Transformed
from laconic.tensors.packing import check_whole
from laconic.tensors.stored import Record
from laconic.tensors.transforms import BlockDiagonal


@dataclass(frozen=True)
class WUSH(LayerMethod):
    """Transforms inputs and weights block by block until both are equally easy to round, for what rounds them next.

        S_x = R^T R,  S_w = W^T W / rows,  R W^T / rows^1/2 = V diag(s) U^T;  T = Had diag(s)^1/2 V^T R^-T;
        x --T--> T x,  W --T^-1--> W T^-1,  both with the second moment Had diag(s) Had^T

    The first link of a chain, `[WUSH(), GPTQ(4, 32), Activations(4, group=32)]`, with groups as wide as
    its blocks: scales by the greatest magnitude of a block are what it is optimal for. Unlike a rotation
    it is fitted to the layer and stored with it: 16 B / rows bits a weight for blocks of B, which all
    sizes count.

    Convolutions, fused experts and embeddings are not transformed, which the report notes.

    Args:
        block: channels that are mixed, a power of two; the largest that divides the width stands in
            where the width is no multiple of it.
        spread: whether a Hadamard matrix comes last. Without it, energies fall within a block.
        damp: share of the mean that is added to the diagonal of each block of the moment, and to s.
        precision: in which the transform is kept.

    Example:
        >>> WUSH(block=16).wants
        (SecondMoment(),)
    """

    block: int = 32
    spread: bool = True
    damp: float = 0.01
    precision: Literal["bf16", "fp32"] = "bf16"

    by_rows = False
    changes_inputs = True
    paper = Paper(
        93, "WUSH: near-optimal adaptive transforms for LLM quantization", 2025, "2512.00956"
    )
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "transform", "activation-aware")

    def __post_init__(self) -> None:
        check_whole("block", self.block, 2)
        if self.block & (self.block - 1):
            raise UsageError(f"block must be a power of two, found {self.block}")
        if not self.damp >= 0:
            raise UsageError(f"damp must be at least 0, found {self.damp!r}")
        if self.precision not in ("bf16", "fp32"):
            raise UsageError(f"precision must be 'bf16' or 'fp32', found {self.precision!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def transform(self, rows: Tensor, stats: LayerStats) -> BlockDiagonal:
        """The transform of the inputs of `rows` (R, C); notes what it promises."""
        block = min(self.block, hadamard_block(rows.shape[1]))
        found = balanced_transforms(
            rows, stats.mean(SecondMoment()), block, spread=self.spread, damp=self.damp
        )
        stats.note(f"predicted error {float(found.gain.mean()):.2f} of that behind a Hadamard")
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return BlockDiagonal(found.matrix.to(dtype))

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in) transformed, and what undoes it; nothing is smaller."""
        check_finite("the weight", weight)
        transform = self.transform(weight.float(), stats)
        return Transformed(Dense(transform.fold(weight)), transform)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """`record` with the transform behind those that it has.

        Raises:
            UsageError: the layer was compressed before, which a transform would undo.
        """
        check_finite("the weight", weight)
        if not isinstance(record.weight, Dense):
            raise UsageError(
                f"wush transforms dense weights, found {record.weight.format}: put it before the methods "
                "that compress them"
            )
        reason = no_place(stats.layer)
        if hadamard_block(weight.shape[1]) == 1:
            reason = f"{weight.shape[1]} channels have no Hadamard matrix"
        if reason:
            stats.note(f"not transformed: {reason}")
            return record
        now = record.weight.dense(torch.float32)
        transform = behind(record.transform, self.transform(now, stats))
        return replace(record, weight=Dense(transform.fold(weight)), transform=transform)
