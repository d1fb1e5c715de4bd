"""How the rest of a row best makes up for an error that is given: OBR's transfers, values under a mask."""

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_shape, check_square
from laconic.numerics.cholesky import damped_cholesky
from laconic.numerics.parallel import one_thread, parallel_map

PRECISION = torch.float64
BYTES_AT_ONCE = 1 << 25  # of the gathered systems of a worker


def absorb_error(error: Tensor, moment: Tensor, receivers: Tensor, damp: float = 0.01) -> Tensor:
    """The change of the receiving weights that makes up best for an error in the others.

    With H the second moment, R the receivers of a row and E the rest, the change is
    H_RR^-1 H_RE e_E (OBR, Guo, Li, Benini, 2025): the output error of the row is then least. Give
    the weights that a mask removes as the error to find the best values under the mask.

    Args:
        error: (R, C), old value minus new value of the weights that are fixed; entries at
            receivers do not count.
        moment: (C, C), damped as `damped_cholesky` does.
        receivers: (R, C) bool, the weights that may move. Rows with as many receivers as the others
            are cheapest.
        damp: at least 0.

    Returns:
        (R, C) float64, to be added to the receivers; 0 elsewhere.

    Raises:
        UsageError: shapes that do not fit.
        BadWeights: NaN, infinity, or a moment that no damping mends.

    Example:
        >>> moment = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> absorb_error(torch.tensor([[2.0, 0.0]]), moment, torch.tensor([[False, True]])).round()
        tensor([[0., 1.]], dtype=torch.float64)
    """
    if error.ndim != 2 or not error.shape[1]:
        raise UsageError(f"the error must have the shape (R, C), found {tuple(error.shape)}")
    check_shape("receivers", receivers, tuple(error.shape))
    check_square("the second moment", moment, error.shape[1])
    check_finite("the error", error)
    receivers = receivers.bool()
    with one_thread():
        factor = damped_cholesky(moment, damp).factor
        h = factor @ factor.mT  # damped, and a 1 tied to nothing at dead columns
        pulled = error.detach().to(PRECISION).masked_fill(receivers, 0) @ h  # (R, C)
    most = int(receivers.sum(dim=1).max()) if len(error) else 0
    at_once = max(1, BYTES_AT_ONCE // (8 * max(1, most) ** 2))
    parts = [slice(r, r + at_once) for r in range(0, len(error), at_once)]
    changes = parallel_map(lambda part: _solve(pulled[part], h, receivers[part], most), parts)
    return torch.cat([pulled[:0], *changes])


def _solve(pulled: Tensor, h: Tensor, receivers: Tensor, most: int) -> Tensor:
    """Rows of H_RR^-1 `pulled`_R, each with its own receivers, filled up to `most`."""
    change = torch.zeros_like(pulled)
    if not most:
        return change
    index = (~receivers).long().argsort(dim=1, stable=True)[:, :most]  # receivers first
    real = receivers.gather(1, index)  # (r, k)
    systems = h[index.unsqueeze(2), index.unsqueeze(1)]  # (r, k, k)
    filler = ~(real.unsqueeze(2) & real.unsqueeze(1))
    systems.masked_fill_(filler, 0).diagonal(dim1=1, dim2=2).add_((~real).to(PRECISION))
    right = (pulled.gather(1, index) * real).unsqueeze(2)
    factor = torch.linalg.cholesky(systems)
    found = torch.cholesky_solve(right, factor).squeeze(2)
    return change.scatter_(1, index, found * real)
