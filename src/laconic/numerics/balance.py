"""Transforms that make the inputs and the weights of a layer equally hard to quantize, block by block."""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_at_least, check_finite, check_square
from laconic.numerics.cholesky import damped_cholesky
from laconic.numerics.hadamard import hadamard_transform
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64


class Balanced(NamedTuple):
    """Transforms of blocks of channels, and what they promise.

    Attributes:
        matrix: (n, B, B) float64, T: inputs become T x, weights W T^-1.
        gain: (n,) float64, the predicted error over that behind a plain Hadamard, at most 1:
            (sum s)^2 / (tr S_x tr S_w).
    """

    matrix: Tensor
    gain: Tensor


@one_thread()
def balanced_transforms(
    weight: Tensor, moment: Tensor, block: int, *, spread: bool = True, damp: float = 0.01
) -> Balanced:
    """T = Had diag(s)^1/2 V^T R^-T of each block, which (nearly) minimises the error of W A quantization.

    With S_x = R^T R, S_w = W^T W / rows and R W^T / rows^1/2 = V diag(s) U^T, both moments become
    Had diag(s) Had^T: equal, and with a constant diagonal (WUSH, Chen et al., 2025, arXiv 2512.00956).

    Args:
        weight: (R, C), W.
        moment: (C, C), E[x x^T]; its diagonal blocks are used.
        block: B, a power of two that divides C.
        spread: whether the Hadamard matrix comes last; without it moments are diag(s).
        damp: share of the mean that is added to the diagonal of each block of the moment and to s.

    Raises:
        UsageError: shapes or a block that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> found = balanced_transforms(torch.eye(2), torch.diag(torch.tensor([16.0, 1.0])), 2, damp=0.0)
        >>> t = found.matrix[0]
        >>> (t @ torch.diag(torch.tensor([16.0, 1.0], dtype=t.dtype)) @ t.T).diagonal()
        tensor([1.7678, 1.7678], dtype=torch.float64)
    """
    if weight.ndim != 2 or not weight.numel():
        raise UsageError(f"the weight must have the shape (R, C), found {tuple(weight.shape)}")
    rows, columns = weight.shape
    check_square("the second moment", moment, columns)
    check_finite("the weight", weight)
    check_at_least("damp", damp, 0.0)
    if block < 1 or block & (block - 1) or columns % block:
        raise UsageError(f"block must be a power of two that divides {columns}, found {block!r}")
    at = torch.arange(columns, device=moment.device).reshape(-1, block)
    inputs = moment.to(PRECISION)[at.unsqueeze(2), at.unsqueeze(1)]  # (n, B, B)
    lower = damped_cholesky(inputs, damp).factor
    w = weight.detach().to(PRECISION).reshape(rows, -1, block).transpose(0, 1)  # (n, R, B)
    y = lower.mT @ w.mT  # R W^T
    energy, basis = torch.linalg.eigh(y @ y.mT / rows)
    s = energy.flip(-1).clamp(min=0).sqrt()
    basis = basis.flip(-1)
    traces = (lower.square().sum(dim=(1, 2)), w.square().sum(dim=(1, 2)) / rows)
    gain = s.sum(dim=1).square() / (traces[0] * traces[1]).clamp(min=torch.finfo(PRECISION).tiny)
    s = s + damp * s.mean(dim=1, keepdim=True)
    s = torch.where(s > 0, s, 1)
    inverse = torch.linalg.solve_triangular(
        lower, torch.eye(block, dtype=PRECISION, device=lower.device).expand_as(lower), upper=False
    )
    matrix = s.sqrt().unsqueeze(2) * (basis.mT @ inverse)
    if spread:
        matrix = hadamard_transform(matrix.mT, block).mT
    return Balanced(matrix, gain.clamp(max=1.0))
