"""`CodebookQuantizer`: vectors of weights to the nearest of the centroids that k-means finds."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics.kmeans import kmeans, nearest, subsample
from laconic.tensors.codebook import Codebook, int8_entries
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.dense import Dense
from laconic.tensors.integer import SMALLEST_SCALE
from laconic.tensors.packing import PRECISION, grouped, matrix, spread
from laconic.tensors.patches import DIMS, Patches
from laconic.tensors.quantizer import Quantizer, register_quantizer

POINTS_PER_CENTROID = 256  # more are not looked at when the centroids are sought
SEED = 0x1AC0_71C  # of the choice among more points; not 0, from which random weights often come


class Clusters(NamedTuple):
    """The codebooks of a tensor.

    Attributes:
        entries: (groups, K, dim) as they are kept: floats or int8.
        entry_scale: (groups,) bfloat16 of int8 entries, or None.
        scale: (R, blocks) bfloat16, or None.
        shape: of the tensor.
    """

    entries: Tensor
    entry_scale: Tensor | None
    scale: Tensor | None
    shape: torch.Size


@dataclass(frozen=True)
class CodebookQuantizer(Quantizer[Clusters]):
    """Rounds neighbouring columns together to the nearest of a codebook's vectors, found by k-means.

    Codes are (R, ceil(C / dim)). The codebooks of larger groups are fitted to 256 vectors for each
    entry, drawn at random.

    Args:
        bits: of a weight; `bits * dim`, the bits of a code, must be a whole number in 1..16.
        dim: columns a vector: 1, 2, 3, 4, 6 or 8.
        rows_per_group: rows that share a codebook; all by default.
        columns_per_group: columns that share a codebook, a multiple of dim; all by default.
        entries: how codebooks are kept: `"bf16"`, or `"int8"` with a scale for each.
        scale_block: columns of a row that are divided by their greatest magnitude first; none by
            default.
        iterations: of k-means, at least 0.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 1.0, 2.0, 3.0, 4.0]])
        >>> CodebookQuantizer(bits=0.5, dim=2).project(x)
        tensor([[1., 2., 1., 2., 3., 4.]])
    """

    bits: float = 4
    dim: int = 2
    rows_per_group: int | None = None
    columns_per_group: int | None = None
    entries: Literal["bf16", "int8"] = "bf16"
    scale_block: int | None = None
    iterations: int = 25

    kind = "codebook"

    def __post_init__(self) -> None:
        if self.dim not in DIMS:
            raise UsageError(f"dim must be one of {DIMS}, found {self.dim!r}")
        if self.bits * self.dim not in range(1, 17):
            raise UsageError(
                f"bits times dim must be a whole number in 1..16, found {self.bits!r} times {self.dim}"
            )
        for name in ("rows_per_group", "columns_per_group", "scale_block"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise UsageError(f"{name} must be a number >= 1 or None, found {value!r}")
        if (self.columns_per_group or 0) % self.dim:
            raise UsageError(f"columns_per_group must be a multiple of dim, {self.dim}")
        if self.entries not in ("bf16", "int8"):
            raise UsageError(f"entries must be 'bf16' or 'int8', found {self.entries!r}")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise UsageError(f"iterations must be a number >= 0, found {self.iterations!r}")

    def fit(self, x: Tensor) -> Clusters:
        """The codebooks of each group of `x` (R, ...)."""
        rows = matrix(x)
        scale = self._block_scales(rows)
        vectors, real = self._vectors(rows, scale, x.shape)
        if not vectors.numel():
            empty = torch.zeros(vectors.shape[0], 1, self.dim, dtype=torch.bfloat16)
            return self._kept(empty.to(x.device, PRECISION), scale, x.shape)
        magnitude = vectors.abs().amax().clamp(min=torch.finfo(PRECISION).tiny)
        points, weights = subsample(
            vectors / magnitude, real, POINTS_PER_CENTROID * self._count, SEED
        )
        count = min(self._count, points.shape[1])
        found = kmeans(points, count, weights=weights, iterations=self.iterations)
        owned = torch.nn.functional.one_hot(found.assignment, count).sum(1)  # (groups, K)
        order = owned.argsort(dim=1, descending=True, stable=True)  # often used ones have low codes
        entries = found.centroids.gather(1, order.unsqueeze(-1).expand(found.centroids.shape))
        return self._kept(entries.to(PRECISION) * magnitude, scale, x.shape)

    def encode(self, x: Tensor, params: Clusters) -> Tensor:
        """Codes of `x` (R, ...), (R, ceil(C / dim)) int32."""
        patches = self._patches(x.shape)
        vectors, real = self._vectors(matrix(x), params.scale, x.shape)
        if not vectors.numel():
            return torch.zeros(patches.rows, patches.vectors, dtype=torch.int32, device=x.device)
        magnitude = vectors.abs().amax().clamp(min=torch.finfo(PRECISION).tiny)
        entries = params.entries.to(PRECISION)
        if params.entry_scale is not None:
            entries = entries * params.entry_scale.to(PRECISION)[:, None, None]
        codes, _ = nearest(vectors / magnitude, entries / magnitude, weights=real)
        return patches.join(codes).int()

    def decode(self, codes: Tensor, params: Clusters) -> Tensor:
        """The values of `codes`, (*shape of the fitted tensor), float32."""
        return self._tensor(codes, params, PRECISION).dense()

    def pack(self, codes: Tensor, params: Clusters, like: Tensor) -> CompressedTensor:
        """A `Codebook` tensor."""
        return self._tensor(codes, params, like.dtype)

    @property
    def _count(self) -> int:
        return 1 << int(self.bits * self.dim)

    def _patches(self, shape: torch.Size) -> Patches:
        return Patches.of(shape, self.dim, self.rows_per_group, self.columns_per_group)

    def _tensor(self, codes: Tensor, params: Clusters, dtype: torch.dtype) -> Codebook:
        return Codebook.from_codes(
            codes, params.entries, shape=params.shape, dtype=dtype,
            rows_per_group=self.rows_per_group, columns_per_group=self.columns_per_group,
            entry_scale=params.entry_scale,
            scale=None if params.scale is None else Dense(params.scale),
            scale_block=self.scale_block or 0,
        )  # fmt: skip

    def _block_scales(self, rows: Tensor) -> Tensor | None:
        if self.scale_block is None:
            return None
        blocks = grouped(rows, self.scale_block)
        greatest = blocks.abs().amax(-1) if blocks.numel() else blocks.new_zeros(blocks.shape[:2])
        return greatest.to(torch.bfloat16).clamp(min=SMALLEST_SCALE)

    def _vectors(
        self, rows: Tensor, scale: Tensor | None, shape: torch.Size
    ) -> tuple[Tensor, Tensor | None]:
        """The vectors of each group, and which of their values are real; None where all are."""
        patches = self._patches(shape)
        if scale is not None:
            rows = rows / spread(scale.to(PRECISION), rows.shape[1], self.scale_block or 1)
        vectors = patches.cut(rows)
        return vectors, None if vectors.numel() == rows.numel() else patches.cut(
            rows.new_ones(rows.shape)
        )

    def _kept(self, entries: Tensor, scale: Tensor | None, shape: torch.Size) -> Clusters:
        if self.entries == "bf16":
            return Clusters(entries.to(torch.bfloat16), None, scale, shape)
        whole, step = int8_entries(entries)
        return Clusters(whole, step, scale, shape)


register_quantizer(CodebookQuantizer)
