"""AQLM: neighbouring weights as sums of learned vectors, codes chosen by beam search on the layer's outputs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.additive import additive_values, beam_search, residual_kmeans
from laconic.numerics.refit import refit_tables
from laconic.tensors import CompressedTensor
from laconic.tensors.additive import Additive

SCHEMES = ((1, 8, 8), (1, 8, 4), (2, 8, 8), (3, 8, 8), (2, 8, 4))  # for budgets: about 1 to 4 bits
SMALLEST = float(torch.finfo(torch.bfloat16).tiny)
KMEANS = 25  # iterations, at most


@dataclass(frozen=True)
class AQLM(LayerMethod):
    """Makes each run of a row's weights the sum of one vector from each of several learned codebooks.

        W' = s_r sum_m C_m[code_m];  loss = tr((W - W') H (W - W')^T),  H = E[x x^T]

    It starts from residual k-means and takes in turn: codebooks and scales that lose least under these codes,
    by conjugate gradients, and codes that lose least under these codebooks, by beam search over all vectors.
    Neither makes the loss greater. Ends once a round gains less than `tolerance`.

    Args:
        codebooks: vectors in a sum, 1 to 8.
        bits: of a code, 1 to 12; a codebook has 2^bits vectors and is stored with the layer.
        length: weights of a vector, 1 to 32.
        beam: hypotheses that the search keeps of each row, at least 1.
        rounds: at most, at least 0; 0 leaves residual k-means.
        tolerance: the share of the loss that a round must gain for another, at least 0.

    Example:
        >>> AQLM(codebooks=2).wants
        (SecondMoment(),)
    """

    codebooks: int = 1
    bits: int = 8
    length: int = 4
    beam: int = 1
    rounds: int = 20
    tolerance: float = 0.005

    by_rows = False  # codebooks are of the whole weight
    paper = Paper(78, "Extreme compression of LLMs via additive quantization", 2024, "2401.06118")
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "codebook", "additive")

    def __post_init__(self) -> None:
        limits = {
            "codebooks": (1, 8),
            "bits": (1, 12),
            "length": (1, 32),
            "beam": (1, 64),
            "rounds": (0, 1000),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise UsageError(f"{name} must be a whole number in {low}..{high}, found {value!r}")
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance must be at least 0, found {self.tolerance!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) as codes, codebooks and scales."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        more = -rows.shape[1] % self.length
        moment = F.pad(stats.mean(SecondMoment()), (0, more, 0, more))
        wide = F.pad(rows, (0, more))
        scale = wide.norm(dim=1) / max(1, wide.shape[1]) ** 0.5  # entries near 1
        scale = torch.where(scale > 0, scale, 1)
        vectors = (wide / scale.unsqueeze(1)).reshape(-1, self.length)
        count = 2**self.bits
        if not vectors.numel():
            tables = vectors.new_zeros(self.codebooks, count, self.length)
            codes = torch.zeros(len(rows), 0, self.codebooks, dtype=torch.int64, device=rows.device)
            return self._packed(codes, tables, scale, weight)
        tables, flat = residual_kmeans(
            vectors, self.codebooks, min(count, len(vectors)), iterations=KMEANS
        )
        codes = flat.reshape(len(rows), -1, self.codebooks)
        codes, tables, scale = self._improved(wide, moment, codes, tables, scale)
        tables = F.pad(tables, (0, 0, 0, count - tables.shape[1]))
        return self._packed(codes, tables, scale, weight)

    def options(self) -> tuple["AQLM", ...]:
        """Five schemes of 1 to 4 bits a weight, codebooks not counted."""
        return tuple(
            replace(self, codebooks=m, bits=bits, length=length) for m, bits, length in SCHEMES
        )

    def _improved(
        self, wide: Tensor, moment: Tensor, codes: Tensor, tables: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, codebooks and scales after as many rounds as gain something."""
        last = torch.inf
        for number in range(self.rounds):
            tables = self._refitted(wide, moment, codes, tables, scale)
            scale = _best_scales(wide, moment, codes, tables, scale)
            codes, losses = beam_search(
                wide, moment, codes, tables, scale, beam=self.beam, seed=number
            )
            loss = float(losses.double().sum())
            if last - loss <= self.tolerance * last:
                break
            last = loss
        if self.rounds:
            tables = self._refitted(wide, moment, codes, tables, scale)
        return codes, tables, scale

    def _refitted(
        self, wide: Tensor, moment: Tensor, codes: Tensor, tables: Tensor, scale: Tensor
    ) -> Tensor:
        count, entries, length = tables.shape
        first = torch.arange(count, device=codes.device) * entries
        found = refit_tables(
            tables.reshape(-1, length), codes + first, wide, moment,
            scale=scale.unsqueeze(1).expand_as(wide),
        )  # fmt: skip
        return found.reshape(tables.shape).to(torch.bfloat16).float()  # as they are stored

    def _packed(
        self, codes: Tensor, tables: Tensor, scale: Tensor, like: Tensor
    ) -> CompressedTensor:
        return Additive.from_codes(
            codes, tables.to(torch.bfloat16), scale.to(torch.bfloat16).clamp(min=SMALLEST),
            shape=like.shape, dtype=like.dtype,
        )  # fmt: skip


def _best_scales(
    wide: Tensor, moment: Tensor, codes: Tensor, tables: Tensor, scale: Tensor
) -> Tensor:
    """(R,) the scale of each row with which it loses least, in bfloat16."""
    unit = additive_values(codes, tables, torch.ones_like(scale)).double()
    pulled = unit @ moment.double()
    energy = (unit * pulled).sum(dim=1)
    best = (wide.double() * pulled).sum(dim=1) / energy.clamp(min=torch.finfo(torch.float64).tiny)
    kept = torch.where((energy > 0) & (best > 0), best, scale.double())
    return kept.to(torch.bfloat16).clamp(min=SMALLEST).float()
