"""Low rank where it counts: the best factors for the outputs of a layer, at every rank at once.

`activation_svd` is the projector form that LoRD, LLM-ROM, SVD-LLM, Dobi-SVD and AFM share. It needs no
Cholesky factor and no inverse. `whitened_svd` is the form of EoRA and SVD-LLM, with the same result.
Everything is computed in float64 on one thread.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_at_least, check_finite, check_shape, check_square
from laconic.numerics.cholesky import damped_cholesky, ridge_of
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64
LARGE = 2048  # both sides above this: a randomised factorisation, if the rank allows
SMALL_RANK = 0.2  # of the shorter side: from here a randomised factorisation saves nothing


class SVD(NamedTuple):
    """A truncated singular value decomposition, U diag(S) V^T.

    Attributes:
        left: (..., m, r), U.
        values: (..., r), S, falling.
        right: (..., n, r), V.
    """

    left: Tensor
    values: Tensor
    right: Tensor


class ActivationSVD(NamedTuple):
    """The directions of a layer's outputs, and what every rank loses.

    Attributes:
        weight: (..., m, n) float64, W.
        basis: (..., m, p) float64, orthonormal, the directions in order of energy; p = min(m, n).
        energy: (..., p) float64, the mean squared output along each, falling.
        mean: (..., m) float64, the mean output W mu without bias, or None if not centred.
    """

    weight: Tensor
    basis: Tensor
    energy: Tensor
    mean: Tensor | None

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (..., m, rank), orthonormal, and B (..., rank, n) with W' = A B = U_r U_r^T W."""
        if not 0 <= rank <= self.basis.shape[-1]:
            raise UsageError(f"rank must be 0 to {self.basis.shape[-1]}, found {rank!r}")
        a = self.basis[..., :rank]
        with one_thread():
            return a, a.mT @ self.weight

    def shift(self, rank: int) -> Tensor | None:
        """(..., m): what the layer's bias gains when it keeps `rank`; None if not centred."""
        if self.mean is None:
            return None
        a, _ = self.factors(rank)
        with one_thread():
            return self.mean - (a @ (a.mT @ self.mean.unsqueeze(-1))).squeeze(-1)

    def errors(self) -> Tensor:
        """(..., p + 1): the mean squared output error at rank 0 to p, damping included."""
        tail = self.energy.flip(-1).cumsum(-1).flip(-1)
        return torch.cat([tail, torch.zeros_like(tail[..., :1])], dim=-1)


@one_thread()
def activation_svd(
    weight: Tensor, moment: Tensor, *, mean: Tensor | None = None, ridge: float = 1e-4
) -> ActivationSVD:
    """The best approximations of a layer's outputs at every rank, from one factorisation.

    U_r, the top eigenvectors of W H W^T, make W' = U_r U_r^T W the matrix of rank r with the least
    E||(W - W') x||^2 (SVD-LLM V2, 2025; LoRD, 2023).

    Args:
        weight: (..., m, n), W.
        moment: (..., n, n), H = E[x x^T], positive semi-definite.
        mean: (..., n), E[x]. If given, deviations from the mean output are approximated, and the
            bias takes the rest: see `ActivationSVD.shift` (AFM, 2023).
        ridge: share of the mean diagonal of H that is added to it, so that directions which were
            never seen count a little; at least 0.

    Returns:
        Basis and energy. Directions without energy are orthonormal all the same.

    Raises:
        UsageError: shapes that do not fit, a negative ridge.
        BadWeights: NaN or infinity.

    Example:
        >>> found = activation_svd(torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2), ridge=0.0)
        >>> found.errors().round(decimals=4)
        tensor([10.,  1.,  0.], dtype=torch.float64)
    """
    _check_weighted(weight, moment, ridge)
    w, h = weight.detach().to(PRECISION), moment.to(PRECISION)
    h = (h + h.mT) / 2
    mean_output = None
    if mean is not None:
        check_shape("mean", mean, (*moment.shape[:-2], w.shape[-1]))
        check_finite("mean", mean)
        mu = mean.to(PRECISION).unsqueeze(-1)
        h = h - mu @ mu.mT
        mean_output = (w @ mu).squeeze(-1)
    h = h + ridge_of(h, ridge) * torch.eye(h.shape[-1], dtype=PRECISION, device=h.device)
    if w.shape[-2] <= w.shape[-1]:
        energy, basis = _falling(w @ h @ w.mT)
    else:  # W = Q R: the eigenvectors of the small R H R^T, in the space of the columns of Q
        q, r = torch.linalg.qr(w)
        energy, small = _falling(r @ h @ r.mT)
        basis = q @ small
    return ActivationSVD(w, basis, energy, mean_output)


@one_thread()
def whitened_svd(
    difference: Tensor, moment: Tensor, rank: int, *, damp: float = 1e-8,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """B and A of rank r with the least ||(D - B A) H^(1/2)|| (EoRA, Liu et al., 2024).

    With H = L L^T, the top singular vectors of D L give B = U S^(1/2) and A = S^(1/2) V^T L^-1. Both
    factors are of the same size, as adapters like it. Inputs that were never seen get no weight.

    Args:
        difference: (..., m, n), D: what a compressed weight lacks.
        moment: (..., n, n), H = E[x x^T].
        rank: 0 to min(m, n).
        damp: share of the mean diagonal added to that of H, raised if needed.
        generator: for the randomised factorisation of large matrices, see `truncated_svd`.

    Returns:
        B (..., m, r) and A (..., r, n), float64.

    Raises:
        UsageError: shapes that do not fit, rank out of range, negative damping.
        BadWeights: NaN or infinity, or H is not positive semi-definite.

    Example:
        >>> b, a = whitened_svd(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2), 1)
        >>> round(float((b @ a)[0, 0]), 4)
        3.0
    """
    _check_weighted(difference, moment, damp)
    lower, _, dead = damped_cholesky(moment, damp)
    seen = difference.detach().to(PRECISION).masked_fill(dead.unsqueeze(-2), 0)
    left, values, right = truncated_svd(seen @ lower, rank, generator=generator)
    root = values.sqrt()
    a = torch.linalg.solve_triangular(
        lower, (right * root.unsqueeze(-2)).mT, upper=False, left=False
    )
    return left * root.unsqueeze(-2), a.masked_fill(dead.unsqueeze(-2), 0)


@one_thread()
def truncated_svd(matrix: Tensor, rank: int, *, generator: torch.Generator | None = None) -> SVD:
    """The top `rank` singular triplets: exact, or randomised where that is much cheaper.

    Randomised if both sides are above 2048 and the rank is below a fifth of the shorter one.

    Args:
        matrix: (..., m, n).
        rank: 0 to min(m, n).
        generator: for the randomised factorisation; a new one with seed 0 by default.

    Raises:
        UsageError: no matrix, rank out of range.
        BadWeights: NaN or infinity.

    Example:
        >>> truncated_svd(torch.diag(torch.tensor([1.0, 5.0, 2.0])), 2).values.round(decimals=4)
        tensor([5., 2.], dtype=torch.float64)
    """
    shorter = _check_rank(matrix, rank)
    if shorter > LARGE and rank < SMALL_RANK * shorter:
        return randomized_svd(matrix, rank, generator=generator)
    u, s, vh = torch.linalg.svd(matrix.detach().to(PRECISION), full_matrices=False)
    return SVD(u[..., :rank], s[..., :rank], vh[..., :rank, :].mT)


@one_thread()
def randomized_svd(
    matrix: Tensor, rank: int, *, oversample: int = 16, power: int = 4,
    generator: torch.Generator | None = None,
) -> SVD:  # fmt: skip
    """The top `rank` singular triplets, from a random sketch (Halko, Martinsson, Tropp, 2011).

    With 4 iterations the error is within 1 % of the exact one even where the spectrum is as flat as
    that of noise; with 2, which papers use, it is up to 2 % above.

    Args:
        matrix: (..., m, n).
        rank: 0 to min(m, n).
        oversample: columns of the sketch beyond the rank; at least 0.
        power: iterations that sharpen the spectrum, orthonormalised each; at least 0.
        generator: draws the sketch, on its own device; a new one with seed 0 by default.

    Raises:
        UsageError: no matrix, rank, oversample or power out of range.
        BadWeights: NaN or infinity.

    Example:
        >>> randomized_svd(torch.diag(torch.tensor([1.0, 5.0, 2.0])), 1).values.round(decimals=4)
        tensor([5.], dtype=torch.float64)
    """
    shorter = _check_rank(matrix, rank)
    check_at_least("oversample", oversample, 0)
    check_at_least("power", power, 0)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    a = matrix.detach().to(PRECISION)
    sketch = torch.randn(
        a.shape[-1], min(rank + oversample, shorter), generator=generator,
        device=generator.device, dtype=PRECISION,
    ).to(a.device)  # fmt: skip
    q = torch.linalg.qr(a @ sketch).Q
    for _ in range(power):
        q = torch.linalg.qr(a.mT @ q).Q
        q = torch.linalg.qr(a @ q).Q
    u, s, vh = torch.linalg.svd(q.mT @ a, full_matrices=False)
    return SVD(q @ u[..., :rank], s[..., :rank], vh[..., :rank, :].mT)


def _falling(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0 and falling, and eigenvectors of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def _check_rank(matrix: Tensor, rank: int) -> int:
    """The shorter side of `matrix`."""
    if matrix.ndim < 2 or not matrix.shape[-1] or not matrix.shape[-2]:
        raise UsageError(f"expected a matrix (..., m, n), found {tuple(matrix.shape)}")
    check_finite("the matrix", matrix)
    shorter = min(matrix.shape[-2:])
    if not 0 <= rank <= shorter:
        raise UsageError(f"rank must be 0 to {shorter}, found {rank!r}")
    return shorter


def _check_weighted(weight: Tensor, moment: Tensor, ridge: float) -> None:
    _check_rank(weight, 0)
    check_square("the second moment", moment, weight.shape[-1])
    check_finite("the second moment", moment)
    check_at_least("the damping", ridge, 0.0)
