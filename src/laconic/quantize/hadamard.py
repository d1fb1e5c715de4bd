"""Hadamard: rotate what a layer multiplies, so that no channel stands out."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics.hadamard import hadamard_block
from laconic.quantize.activations import behind, no_place
from laconic.tensors import CompressedTensor, Dense, Transformed, transforms
from laconic.tensors.packing import check_whole
from laconic.tensors.stored import Record


@dataclass(frozen=True)
class Hadamard(LayerMethod):
    """Rotates inputs and weights by a randomised Hadamard matrix, for what quantizes them next.

        x --signs, Hadamard--> T x;  W T^t --next in the chain--> W';  y = W' T x

    T is orthonormal: the layer computes what it did, but outliers are spread over all channels. It is
    the first link of a chain, `[Hadamard(), GPTQ(bits=4, group="row"), Activations(bits=4)]`; alone
    it makes nothing smaller. Widths that are no power of two are rotated in blocks. Layers of one
    width share their signs, so that those with one input can share its rotation.

    Convolutions, fused experts and embeddings are not rotated, which the report notes.

    Args:
        seed: of the random signs, 0 to 2^64 - 1.
        block: channels that are mixed, a power of two; by default the largest that divides the
            width (64 for 704), which also stands in where the width is no multiple of `block`.

    Example:
        >>> outlier = torch.tensor([[8.0, 0.0, 0.0, 0.0]])
        >>> Hadamard().transform(4)(outlier).abs()
        tensor([[4., 4., 4., 4.]])
    """

    seed: int = 0
    block: int | None = None

    paper = Paper(None, "QuaRot: outlier-free 4-bit inference in rotated LLMs", 2024, "2404.00456")
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "transform", "rotation")
    changes_inputs = True

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**64 - 1)
        if self.block is not None:
            check_whole("block", self.block, 2)
            if self.block & (self.block - 1):
                raise UsageError(f"block must be a power of two, found {self.block}")

    def transform(self, width: int) -> transforms.Hadamard:
        """The rotation of inputs of `width` channels."""
        largest = hadamard_block(width)
        return transforms.Hadamard.random(
            width, self.seed, block=min(largest, self.block or largest)
        )

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) rotated, and the rotation that undoes it; nothing is smaller."""
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity")
        transform = self.transform(weight.shape[1]).to(weight.device)
        return Transformed(Dense(transform.fold(weight)), transform)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """`record` with the rotation behind the transforms that it has.

        Raises:
            UsageError: the layer was compressed before, which a rotation would undo.
        """
        if not isinstance(record.weight, Dense):
            raise UsageError(
                f"hadamard rotates dense weights, found {record.weight.format}: put it before the "
                "methods that compress them"
            )
        width = weight.shape[1]
        reason = no_place(stats.layer)
        if hadamard_block(width) == 1:
            reason = f"{width} channels have no Hadamard matrix"
        if reason:
            stats.note(f"not rotated: {reason}")
            return record
        rotation = self.transform(width).to(weight.device)
        transform = behind(record.transform, rotation)
        return replace(record, weight=Dense(transform.fold(weight)), transform=transform)
