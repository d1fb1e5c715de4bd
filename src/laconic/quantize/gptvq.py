"""GPTVQ: a few columns at a time to the nearest vector of a codebook, the columns behind making up for it."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.cholesky import inverse_upper
from laconic.numerics.kmeans import kmeans, nearest
from laconic.numerics.obs import block_sweep
from laconic.numerics.refit import refit_tables
from laconic.tensors import CompressedTensor
from laconic.tensors.codebook import Codebook, int8_entries
from laconic.tensors.packing import grouped
from laconic.tensors.patches import Patches

BAND = 256  # columns, at most, that share codebooks
WIDEST_CODE = 12  # bits
MOST_CODE = (
    9  # of the strengths that budgets try: beyond, codebooks of small layers outgrow the codes
)
ENTRY_BITS = {"int8": 8, "bf16": 16}
SCALE_BITS = 16  # of a codebook in int8
SCALE_LEVELS = 16  # that the scales of blocks lie on
SMALLEST = float(torch.finfo(torch.bfloat16).tiny)


@dataclass(frozen=True)
class GPTVQ(LayerMethod):
    """Rounds a few columns at a time to vectors of small codebooks, later columns making up for the error.

        H = E[x x^T], U^T U = H^-1;  for the next `dim` columns B:  q = the vector of the row's codebook
        with the least ||(w_B - q) U_BB^-1||;  w_k -= (w_B - q) U_BB^-1 U_Bk

    Codebooks belong to bands of columns and groups of rows. They are fitted when the sweep reaches the
    band, to the weights as they then are, by k-means weighted with 1 / U_jj^2. At the end all are refitted to
    what the layer puts out, by conjugate gradients.

    Args:
        bits: of a weight; `bits * dim`, the bits of a code, must be a whole number in 1..12.
        dim: columns of a vector, 1, 2, 4 or 8.
        overhead: bits a weight that codebooks may take, above 0; says how many weights share one.
        scale_block: columns of a row that have a scale of their own, one of 16; None for none.
        entries: how codebooks are kept: `"int8"` with a scale for each, or `"bf16"`.
        update: whether codebooks are refitted at the end.
        exact: takes the whole of U_BB; otherwise only its diagonal, as the code of the paper does.
        iterations: of k-means, at least 0.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.

    Example:
        >>> GPTVQ(bits=2, dim=4).wants
        (SecondMoment(),)
    """

    bits: float = 2
    dim: Literal[1, 2, 4, 8] = 2
    overhead: float = 0.25
    scale_block: int | None = None
    entries: Literal["int8", "bf16"] = "int8"
    update: bool = True
    exact: bool = True
    iterations: int = 50
    damp: float = 0.01

    by_rows = False  # codebooks are of the whole weight
    paper = Paper(
        114, "GPTVQ: the blessing of dimensionality for LLM quantization", 2024, "2402.15319"
    )
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "codebook", "error feedback")

    def __post_init__(self) -> None:
        if self.dim not in (1, 2, 4, 8):
            raise UsageError(f"dim must be 1, 2, 4 or 8, found {self.dim!r}")
        if self.bits * self.dim not in range(1, WIDEST_CODE + 1):
            raise UsageError(
                f"bits times dim must be a whole number in 1..{WIDEST_CODE}, found {self.bits!r} and dim "
                f"{self.dim}"
            )
        if self.entries not in ENTRY_BITS:
            raise UsageError(f"entries must be 'int8' or 'bf16', found {self.entries!r}")
        block = self.scale_block
        if block is not None and (block < self.dim or block % self.dim):
            raise UsageError(f"scale_block must be a multiple of dim, {self.dim}, found {block!r}")
        if not self.overhead > 0 or not self.damp > 0 or self.iterations < 0:
            raise UsageError(
                "overhead and damp must be above 0 and iterations at least 0, found "
                f"{self.overhead!r}, {self.damp!r}, {self.iterations!r}"
            )

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) as codes of vectors."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        moment = stats.mean(SecondMoment())
        factor = inverse_upper(moment, self.damp)
        stats.note(factor.raised(self.damp))
        rows = rows.masked_fill(factor.dead, 0)  # nothing is lost there
        scale = self._block_scales(rows)
        sweep = _Sweep(self, rows, factor.factor, factor.dead, scale)
        codes, entries = sweep.run()
        if self.update:
            entries = sweep.refitted(codes, entries, moment)
        return sweep.packed(codes, entries, weight)

    def options(self) -> tuple["GPTVQ", ...]:
        """Codes of 2 to 9 bits for each vector, from 1 bit a weight on."""
        codes = range(max(2, self.dim), MOST_CODE + 1)
        return tuple(replace(self, bits=code / self.dim) for code in codes)

    @property
    def entries_each(self) -> int:
        """Vectors of a codebook."""
        return 2 ** round(self.bits * self.dim)

    def geometry(self, shape: torch.Size) -> Patches:
        """How a weight of `shape` is cut into groups with a codebook each, for the `overhead`."""
        columns = max(1, shape[1:].numel())
        vectors = -(-columns // self.dim)
        taken = self.entries_each * self.dim * ENTRY_BITS[self.entries]
        taken += SCALE_BITS if self.entries == "int8" else 0
        share = taken / self.overhead  # weights that share a codebook
        most = max(1, int(min(BAND, share) / self.dim))
        bands = [d * self.dim for d in range(most, most // 4, -1) if vectors % d == 0]
        bands = bands or [max(d for d in range(1, most + 1) if vectors % d == 0) * self.dim]
        band = min(bands, key=lambda b: abs(b * max(1, round(share / b)) - share))
        rows = min(max(1, shape[0]), max(1, round(share / band)))
        return Patches.of(shape, self.dim, rows, band)

    def _block_scales(self, rows: Tensor) -> Codebook | None:
        """The greatest magnitude of each block, on 16 levels fitted to their logarithms."""
        if self.scale_block is None or not rows.numel():
            return None
        greatest = grouped(rows, self.scale_block).abs().amax(dim=-1).clamp(min=SMALLEST)
        points = greatest.log2().reshape(1, -1, 1)
        count = min(SCALE_LEVELS, len(points[0].unique()))
        found = kmeans(points, count)
        levels = found.centroids.exp2().to(torch.bfloat16)
        codes = found.assignment.reshape(greatest.shape)
        return Codebook.from_codes(codes, levels, shape=greatest.shape, dtype=torch.bfloat16)


class _Sweep:
    """One weight on its way.

    Args:
        method: the settings.
        rows: (R, C) float32.
        upper: (C, C), U.
        dead: (C,) columns whose input was always zero.
        scale: of blocks of columns, or None.
    """

    def __init__(
        self, method: GPTVQ, rows: Tensor, upper: Tensor, dead: Tensor, scale: Codebook | None
    ) -> None:
        self.method, self.rows, self.scale = method, rows, scale
        self.patches = method.geometry(rows.shape)
        self.columns = self.patches.vectors * method.dim  # with a last vector that is filled up
        more = self.columns - rows.shape[1]
        self.wide = F.pad(rows, (0, more))
        self.upper = torch.eye(self.columns, dtype=upper.dtype, device=upper.device)
        self.upper[: len(upper), : len(upper)] = upper
        self.matter = F.pad(self.upper.diagonal()[: len(upper)] ** -2 * ~dead, (0, more)).float()
        self.spread = torch.ones_like(self.wide)  # (R, columns)
        if scale is not None:
            spread = scale.dense(torch.float32).repeat_interleave(method.scale_block or 1, dim=1)
            self.spread = F.pad(spread, (0, max(0, self.columns - spread.shape[1])), value=1.0)
            self.spread = self.spread[:, : self.columns]
        self.white = self._whiteners()

    def run(self) -> tuple[Tensor, Tensor]:
        """Codes (R, V) and entries (groups, K, dim) float32, as they are stored."""
        dim, (down, across) = self.method.dim, self.patches.grid
        rows, band = self.patches.rows_per_group, self.patches.columns_per_group
        codes = torch.zeros(
            len(self.rows), self.patches.vectors, dtype=torch.int64, device=self.rows.device
        )
        entries = self.rows.new_zeros(down, across, self._count, dim)

        def tall(values: Tensor) -> Tensor:
            """Rows (R, n) by group of rows: (down, rows of a group, n)."""
            padded = F.pad(values, (0, 0, 0, down * rows - len(values)))
            return padded.reshape(down, rows, values.shape[1])

        def enter(updated: Tensor, first: int) -> None:
            here = slice(first, first + band)
            spread = self.spread[:, here]
            points = tall(updated / spread).reshape(down, -1, dim)
            weights = tall(spread.square() * self.matter[here]).reshape(down, -1, dim)
            weights = weights / weights.amax().clamp(min=SMALLEST)
            found = kmeans(points, self._count, weights=weights, iterations=self.method.iterations)
            entries[:, first // band] = self.kept(found.centroids)

        def quantize(w: Tensor, first: int) -> Tensor:
            spread, white = self.spread[:, first : first + dim], self.white[first // dim]
            tables = entries[:, first // band]
            points = tall(w / spread) @ white
            index = nearest(points, tables @ white)[0]  # (down, rows)
            chosen = tables.gather(1, index.unsqueeze(2).expand(-1, -1, dim))
            codes[:, first // dim] = index.flatten()[: len(w)]
            return chosen.reshape(-1, dim)[: len(w)] * spread

        if self.rows.numel():
            block_sweep(
                self.wide, self.upper, quantize, dim=dim, exact=self.method.exact, band=band, enter=enter
            )  # fmt: skip
        return codes, entries.reshape(down * across, self._count, dim)

    def refitted(self, codes: Tensor, entries: Tensor, moment: Tensor) -> Tensor:
        """Entries for which the layer puts out what it did as nearly as these codes allow."""
        if not self.rows.numel():
            return entries
        index = self.patches.groups(codes.device) * entries.shape[1] + codes
        tables = refit_tables(
            entries.reshape(-1, self.method.dim), index.unsqueeze(2), self.rows, moment,
            scale=self.spread[:, : self.rows.shape[1]],
        )  # fmt: skip
        return self.kept(tables.reshape(entries.shape).float())

    def kept(self, entries: Tensor) -> Tensor:
        """Entries (groups, K, dim) as they come back from where they are stored."""
        if self.method.entries == "bf16":
            return entries.to(torch.bfloat16).float()
        whole, step = int8_entries(entries)
        return whole.float() * step.float()[:, None, None]

    def packed(self, codes: Tensor, entries: Tensor, like: Tensor) -> CompressedTensor:
        """The weight as it is stored."""
        stored, step = entries.to(torch.bfloat16), None
        if self.method.entries == "int8":
            stored, step = int8_entries(entries)
        return Codebook.from_codes(
            codes, stored, shape=like.shape, dtype=like.dtype,
            rows_per_group=self.patches.rows_per_group,
            columns_per_group=self.patches.columns_per_group,
            entry_scale=step, scale=self.scale, scale_block=self.method.scale_block or 0,
        )  # fmt: skip

    @property
    def _count(self) -> int:
        """K: no more entries than a group has vectors."""
        patches = self.patches
        vectors = patches.rows_per_group * patches.columns_per_group // self.method.dim
        return max(1, min(self.method.entries_each, vectors))

    def _whiteners(self) -> Tensor:
        """(V, dim, dim): multiplied by it, the error of a vector has the length that it costs."""
        dim = self.method.dim
        at = torch.arange(self.columns, device=self.upper.device).reshape(-1, dim)
        blocks = self.upper[at.unsqueeze(2), at.unsqueeze(1)]
        if not self.method.exact:
            blocks = torch.diag_embed(blocks.diagonal(dim1=1, dim2=2))
        return torch.linalg.inv(blocks).float()
