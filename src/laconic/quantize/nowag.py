"""NoWag-VQ: one codebook for a normalised weight, its k-means weighted with the energy of the inputs."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import InputNorm, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.kmeans import kmeans, nearest, subsample
from laconic.numerics.normalise import by_columns_and_rows
from laconic.tensors import ChannelScale, CompressedTensor, Dense
from laconic.tensors.codebook import Codebook
from laconic.tensors.combined import Transformed
from laconic.tensors.patches import DIMS, Patches

WIDEST_CODE = 12  # bits
CODEBOOK_SHARE = 0.05  # of the bits of the codes that the codebook may take, where dim is chosen
POINTS_PER_ENTRY = 256  # that k-means is given, at most
SEED = 0
SMALLEST = float(torch.finfo(torch.bfloat16).tiny)


@dataclass(frozen=True)
class NoWagVQ(LayerMethod):
    """Rounds neighbouring columns of the normalised weight to the nearest vector of one codebook.

        W^_ij = W_ij / (r_j l_i),  r = lengths of the columns of W,  l = lengths of the rows of W / r;
        k-means of the vectors of W^ with the weights E[x_j^2] of their columns

    Nothing makes up for errors, so that layers do not depend on each other and only the energy of each
    input is needed.

    Args:
        bits: of a weight; `bits * dim`, the bits of a code, must be a whole number in 1..12.
        dim: columns of a vector: 1, 2, 3, 4, 6 or 8; 0 for the greatest whose codebook takes at most 5 %
            of what the codes take.
        iterations: of k-means, at least 0.
        normalise: whether columns and rows are divided by their lengths; without, it is the plain
            k-means that the paper compares with.

    Example:
        >>> NoWagVQ(bits=2, dim=4).wants
        (InputNorm(),)
    """

    bits: float = 2
    dim: int = 0
    iterations: int = 100
    normalise: bool = True

    by_rows = False  # codebooks are of the whole weight
    paper = Paper(
        74, "NoWag: a unified framework for shape preserving compression", 2025, "2504.14569"
    )
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "codebook", "activation-aware")

    def __post_init__(self) -> None:
        if self.dim not in (0, *DIMS):
            raise UsageError(f"dim must be one of {DIMS}, or 0 to choose, found {self.dim!r}")
        if self.iterations < 0:
            raise UsageError(f"iterations must be at least 0, found {self.iterations!r}")
        if not self._fitting():
            raise UsageError(
                f"bits times dim must be a whole number in 1..{WIDEST_CODE}, found {self.bits!r} and dim "
                f"{self.dim!r}"
            )

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (InputNorm(),)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) as codes of vectors, with scales of its rows and input channels."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        energy = stats.input_norm().square().float()
        values, scale, channels = rows, None, None
        if self.normalise:
            kernel = weight.shape[2:].numel()
            found = by_columns_and_rows(rows, kernel)
            channels = found.columns[0, ::kernel].reciprocal().to(torch.bfloat16)
            scale = (found.rows * math.sqrt(max(1, rows.shape[1]))).to(
                torch.bfloat16
            )  # entries near 1
            scale = scale.clamp(min=SMALLEST)
            values = rows * channels.float().repeat_interleave(kernel) / scale.float()
        codes, entries = self._clusters(values, energy)
        value: CompressedTensor = Codebook.from_codes(
            codes, entries, shape=weight.shape, dtype=weight.dtype,
            scale=None if scale is None else Dense(scale),
            scale_block=0 if scale is None else max(1, rows.shape[1]),
        )  # fmt: skip
        return value if channels is None else Transformed(value, ChannelScale(channels))

    def options(self) -> tuple["NoWagVQ", ...]:
        """1 to 4 bits, those of which a code is whole."""
        found = (self._at(bits) for bits in (1, 1.5, 2, 2.5, 3, 4))
        return tuple(method for method in found if method is not None)

    def _at(self, bits: float) -> Self | None:
        try:
            return replace(self, bits=bits)
        except UsageError:
            return None

    def _fitting(self) -> list[int]:
        """The dims of which a code is whole."""
        dims = (self.dim,) if self.dim else DIMS
        return [d for d in dims if self.bits * d in range(1, WIDEST_CODE + 1)]

    def _clusters(self, values: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (R, V) of `values` (R, C) and the codebook (1, K, dim)."""
        dims = self._fitting()
        most = CODEBOOK_SHARE * self.bits * values.numel()
        small = [d for d in dims if 16 * 2 ** (self.bits * d) * d <= most]
        dim = max(small, default=min(dims))
        patches = Patches.of(values.shape, dim, None, None)
        vectors = patches.cut(values)  # (1, N, dim)
        if not vectors.numel():
            codes = torch.zeros(
                patches.rows, patches.vectors, dtype=torch.int64, device=values.device
            )
            return codes, values.new_zeros(1, 1, dim, dtype=torch.bfloat16)
        weights = patches.cut((energy / energy.max().clamp(min=SMALLEST)).expand_as(values))
        count = min(2 ** int(self.bits * dim), vectors.shape[1])
        points, matter = subsample(vectors, weights, POINTS_PER_ENTRY * count)
        generator = torch.Generator().manual_seed(SEED)
        found = kmeans(
            points, count, weights=matter, iterations=self.iterations, generator=generator
        )
        entries = found.centroids.to(torch.bfloat16)
        codes, _ = nearest(vectors, entries.float(), weights=weights)
        return patches.join(codes), entries
