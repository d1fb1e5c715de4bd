"""What a layer may become: b bits a weight, or two factors of a rank with bits of their own.

    D W = U S V^T;  A = D^-1 U,  B = S V^T;  W' = A_q[:, :r] B_q[:r]

Ranges are found once at full rank and shared by all ranks, so that the error of every rank comes from the
same three products: with e = W - A_r B_r and row weights w,

    sum_i w_i e_i H e_i^T = c - 2 sum_{k <= r} p_k + sum_{k, l <= r} Q_kl G_kl
    p_k = sum_i w_i A_ik (W H B^T)_ik,  Q = A^T diag(w) A,  G = B H B^T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from laconic.allocate.options import undominated
from laconic.numerics.energies import row_errors
from laconic.numerics.parallel import one_thread
from laconic.numerics.svd import activation_svd
from laconic.quantize.gptq import sweep
from laconic.tensors import Grouped, IntQuantizer
from laconic.tensors.integer import Grid
from laconic.tensors.percentile import RowLoss, percentile_grid

PRECISION = torch.float64
WIDEST = 8  # bits of the dense layer that factors must be smaller than
FEWEST = 2  # ranks below are not looked at
EVERY, STEP = 512, 8  # ranks up to which each is looked at, and then so many
FLOOR = 1e-4  # of the greatest weight of a row, that every row counts
DAMP = 0.01  # of the sweeps
SIDE = 3  # bytes that a row's scale and zero point take


@dataclass(frozen=True)
class Choice:
    """One form of a layer.

    Attributes:
        bits: of a weight; 0 where there are factors.
        rank: of the factors; 0 where there are none.
        left: bits of the left factor.
        right: bits of the right factor.
    """

    bits: int = 0
    rank: int = 0
    left: int = 0
    right: int = 0

    def __str__(self) -> str:
        return (
            f"int{self.bits}" if self.bits else f"rank {self.rank} int{self.left} x int{self.right}"
        )

    def bytes(self, rows: int, columns: int) -> int:
        """Resident bytes of a layer (R, C): codes, scales and zero points."""
        if self.bits:
            return grouped_bytes(rows, columns, self.bits)
        left = grouped_bytes(rows, self.rank, self.left)
        return left + grouped_bytes(self.rank, columns, self.right)


def grouped_bytes(rows: int, columns: int, bits: int) -> int:
    """Of asymmetric codes with a scale for each row.

    Example:
        >>> grouped_bytes(10, 16, 4)
        110
    """
    return -(-rows * columns * bits // 8) + SIDE * rows


@dataclass
class Candidates:
    """The forms of one layer that are worth a look, and the layer in each of them.

    Attributes:
        shape: (R, C).
        choices: undominated in bytes and error, and all plain widths.
        error: (choices,) weighted, beside that of an empty layer.
        rows: (R,) what an error in each row counts, as the factors were made for it.
        plain: by width, the layer.
        left: by width, A at full rank.
        right: by width, B at full rank.
    """

    shape: tuple[int, int]
    choices: list[Choice]
    error: np.ndarray
    rows: Tensor
    plain: dict[int, Grouped]
    left: dict[int, Grouped] = field(default_factory=dict)
    right: dict[int, Grouped] = field(default_factory=dict)

    @property
    def bytes(self) -> np.ndarray:
        """(choices,) resident."""
        return np.array([choice.bytes(*self.shape) for choice in self.choices], np.float64)

    def dense(self, choice: Choice) -> Tensor:
        """(R, C) float32, the layer as it would be."""
        if choice.bits:
            return self.plain[choice.bits].dense(torch.float32)
        left = self.left[choice.left].dense(torch.float32)[:, : choice.rank]
        return left @ self.right[choice.right].dense(torch.float32)[: choice.rank]

    def measured(self, points: int) -> list[int]:
        """Numbers of the choices to be put into the model: of each pair of widths `points`, evenly spaced."""
        chosen = [number for number, choice in enumerate(self.choices) if choice.bits]
        for numbers in self.pairs().values():
            picks = np.linspace(0, len(numbers) - 1, min(points, len(numbers)))
            chosen += [numbers[round(pick)] for pick in picks]
        return chosen

    def scores(self, measured: Mapping[int, float]) -> np.ndarray:
        """(choices,) of the whole model: as measured, others between their neighbours by local error."""
        found = np.array([measured.get(number, np.nan) for number in range(len(self.choices))])
        for numbers in self.pairs().values():
            known = [n for n in numbers if n in measured]
            order = sorted(known, key=lambda n: self.error[n])
            x, y = self.error[order], found[order]
            rest = [n for n in numbers if n not in measured]
            found[rest] = np.interp(self.error[rest], x, y)
        return found

    def pairs(self) -> dict[tuple[int, int], list[int]]:
        """Numbers of the choices with factors, by their widths, by rising rank."""
        found: dict[tuple[int, int], list[int]] = {}
        for number, choice in enumerate(self.choices):
            if choice.rank:
                found.setdefault((choice.left, choice.right), []).append(number)
        return {k: sorted(v, key=lambda n: self.choices[n].rank) for k, v in found.items()}


@one_thread()
def candidates(
    weight: Tensor, derivatives: Tensor, moment: Tensor | None,
    *, widths: Sequence[int], factors: Sequence[int],
) -> Candidates:  # fmt: skip
    """The forms of `weight` (R, C).

    Args:
        weight: dense.
        derivatives: (R, C), mean squares of the answers' derivatives by each weight.
        moment: (C, C), H of the layer's inputs; None to weigh columns alike, as the paper does.
        widths: bits of plain layers.
        factors: bits of factors; none, no factors.
    """
    w = weight.to(PRECISION)
    if not derivatives.max() > 0:  # no sequence reached it
        derivatives = torch.ones_like(derivatives)
    loss = _plain_loss(w, derivatives, moment)
    plain = {
        b: _rounded(
            weight, b, percentile_grid(IntQuantizer(b, "row", False), weight, loss=loss), moment
        )
        for b in widths
    }
    rows = derivatives.to(PRECISION).sum(dim=1)
    rows = (rows / rows.max()).clamp(min=FLOOR**2)
    counts = rows if moment is not None else derivatives.to(PRECISION).amax(dim=1)
    found = [Choice(bits) for bits in widths]
    empty = float((counts * row_errors(w, _moment(w, moment))).sum()) or 1.0
    error = [
        float((counts * row_errors(w - value.dense(torch.float32), _moment(w, moment))).sum()) / empty
        for value in plain.values()
    ]  # fmt: skip
    made = Candidates((len(weight), weight.shape[1]), found, np.array(error), rows, plain)
    if factors:
        _add_factors(made, w, counts, moment, factors, empty)
    return _pruned(made)


def row_factors(
    weight: Tensor, rows: Tensor, moment: Tensor | None, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A = D^-1 U (R, r), B = S V^T (r, C) and the energies (r,) of their terms, float64.

    Args:
        weight: (R, C).
        rows: (R,) squares of D.
        moment: (C, C), or None for the identity.
        rank: r, up to that of the weight's shape.
    """
    w = weight.to(PRECISION)
    d = rows.to(w).sqrt()
    d = d.clamp(min=FLOOR * float(d.max())) if d.max() > 0 else torch.ones_like(d)
    found = activation_svd(d.unsqueeze(1) * w, _moment(w, moment))
    a, b = found.factors(rank)
    return a / d.unsqueeze(1), b, found.energy[:rank]


def factor_grids(
    left: Tensor, right: Tensor, energy: Tensor, moment: Tensor | None, bits: tuple[int, int]
) -> tuple[Grid, Grid]:
    """Ranges of A (R, r), for what A_q B is off by, and of B (r, C).

    What W - A B leaves is orthogonal to B under H, so that only (a_q - a) B H B^T (a_q - a)^T counts, whose
    matrix is diagonal: the energies.
    """
    a, b = left.float(), right.float()
    of_left: RowLoss = lambda values: (values - a).to(PRECISION).square() @ energy  # noqa: E731
    of_right: RowLoss | None = None
    if moment is not None:
        of_right = lambda values: row_errors(values - b, moment)  # noqa: E731
    return (
        percentile_grid(IntQuantizer(bits[0], "row", False), a, loss=of_left),
        percentile_grid(IntQuantizer(bits[1], "row", False), b, loss=of_right),
    )


def _add_factors(
    made: Candidates, w: Tensor, counts: Tensor, moment: Tensor | None, factors: Sequence[int],
    empty: float,
) -> None:  # fmt: skip
    n, m = made.shape
    most = min(n, m, WIDEST * n * m // (min(factors) * (n + m)))
    if most < FEWEST:
        return
    a, b, energy = row_factors(w, made.rows, moment, most)
    for bits in factors:
        of_left, of_right = factor_grids(a, b, energy, moment, (bits, bits))
        made.left[bits] = _rounded(a, bits, of_left, None)  # the nearest is best: see factor_grids
        made.right[bits] = _rounded(b, bits, of_right, moment)
    h = _moment(w, moment)
    lefts = {k: v.dense(torch.float32).to(PRECISION) for k, v in made.left.items()}
    rights = {k: v.dense(torch.float32).to(PRECISION) for k, v in made.right.items()}
    seen = {k: (w @ h) @ v.T for k, v in rights.items()}  # W H B^T
    q = {k: v.T @ (counts.unsqueeze(1) * v) for k, v in lefts.items()}
    g = {k: v @ h @ v.T for k, v in rights.items()}
    for left, a in lefts.items():
        for right in rights:
            p = (counts.unsqueeze(1) * a * seen[right]).sum(dim=0)
            both = q[left] * g[right]
            gained = 2 * both.tril(-1).sum(dim=1) + both.diagonal() - 2 * p
            error = 1 + gained.cumsum(0).cpu().numpy() / empty
            ranks = list(range(FEWEST, most + 1, 1 if most <= EVERY else STEP))
            choices = [Choice(rank=r, left=left, right=right) for r in ranks]
            smaller = [c.bytes(n, m) < grouped_bytes(n, m, WIDEST) for c in choices]
            keep = [i for i, fits in enumerate(smaller) if fits]
            made.choices += [choices[i] for i in keep]
            made.error = np.append(made.error, error[[ranks[i] - 1 for i in keep]])


def _pruned(made: Candidates) -> Candidates:
    """Without factors that anything else beats."""
    best = set(undominated(made.bytes, made.error).tolist())
    keep = [i for i, choice in enumerate(made.choices) if choice.bits or i in best]
    made.choices = [made.choices[i] for i in keep]
    made.error = made.error[keep]
    return made


def _plain_loss(w: Tensor, derivatives: Tensor, moment: Tensor | None) -> RowLoss:
    if moment is not None:
        return lambda values: row_errors(values.to(w) - w, moment)
    each = derivatives.to(w).sqrt()
    return lambda values: ((values.to(w) - w).square() * each).sum(dim=1)


def _moment(w: Tensor, moment: Tensor | None) -> Tensor:
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device) if moment is None else moment.to(w)


def _rounded(values: Tensor, bits: int, grid: Grid, moment: Tensor | None) -> Grouped:
    """`values` (R, C) on their grid, about as well as learned rounding will have them.

    Rounded to the nearest, plain layers look several times as bad as they end up, and factors, whose
    rank rounding does not give back, are taken too often.
    """
    quantizer, values = IntQuantizer(bits, "row", False), values.float()
    codes = quantizer.encode(values, grid)
    if moment is not None:
        swept, _ = sweep(values, moment, grid, quantizer, "activation", DAMP)
        off = [row_errors(quantizer.decode(c, grid) - values, moment) for c in (swept, codes)]
        codes = torch.where((off[0] < off[1]).unsqueeze(1), swept, codes)
    value = quantizer.pack(codes, grid, values)
    assert isinstance(value, Grouped)
    return value
