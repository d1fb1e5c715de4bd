"""The column sweep with a price on bits: rounds to an unbounded uniform grid that is entropy coded.

Where codes are entropy coded, a code costs what its length says, and a weight may go to a grid point that
is a little farther away and a lot shorter. A column's squared error counts `1 / U_jj^2`, what it loses
after all columns behind it have made up for it; the choice for a weight w on steps of size s is

    argmin_q  (w - q s)^2 / U_jj^2  +  trade * s^2 / g * length(q),    g = geometric mean of U_jj^2

With fine steps a bit less loses (ln 2 / 6) s^2 / U_jj^2 more, which is why `trade` is near 0.1.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_shape
from laconic.numerics._obs_run import BLOCK, Run, check_sweep, edges
from laconic.numerics.obs_types import PRECISION, Sweep
from laconic.numerics.parallel import parallel_map

ZERO = 128  # the code of the value 0
LARGEST = 127  # steps away from it, at most


def coded_sweep(
    weight: Tensor, upper: Tensor, step: Tensor, lengths: Tensor,
    *, trade: float = 0.1, keep: Tensor | None = None,
) -> Sweep:  # fmt: skip
    """Rounds a weight to multiples of a step column by column, short codes preferred.

    Args:
        weight: (R, C).
        upper: (C, C), U with U^T U = H^-1.
        step: (R,), above 0.
        lengths: (256,) bits that each code will take; finite. The code of `q * step` is q + 128, and q is
            within -127..127.
        trade: what a bit is worth, in squared steps of the column with a mean U_jj; 0 rounds to nearest.
        keep: (R, C) bool; weights outside become exactly 0, and their error is made up for too.

    Returns:
        Values, losses and codes. On a CPU a compiled kernel sweeps the rows in parallel.

    Raises:
        UsageError: shapes that do not fit, a step or trade out of range.
        BadWeights: NaN or infinity.

    Source: entropy-constrained scalar quantization (Chou, Lookabaugh and Gray, 1989) inside GPTQ (Frantar
    et al., 2022).

    Example:
        >>> lengths = torch.arange(-128.0, 128).abs()
        >>> weight = torch.tensor([[0.6, 2.0]])
        >>> coded_sweep(weight, torch.eye(2), torch.ones(1), lengths, trade=0.5).values
        tensor([[0., 2.]])
    """
    check_sweep(weight, upper)
    check_shape("step", step, (weight.shape[0],))
    check_shape("lengths", lengths, (2 * ZERO,))
    if not (step > 0).all() or not torch.isfinite(lengths).all() or not trade >= 0:
        raise UsageError("steps must be above 0, lengths finite and trade at least 0")
    if keep is not None:
        check_shape("keep", keep, tuple(weight.shape))
    run = _CodedRun(weight, upper, step, lengths, trade, keep)
    for first, last, _ in edges(weight.shape[1], BLOCK, None):
        run.fix(first, last)
    return Sweep(run.values, run.loss, run.codes)


class _CodedRun(Run):
    def __init__(
        self, weight: Tensor, upper: Tensor, step: Tensor, lengths: Tensor, trade: float,
        keep: Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__(weight, upper, None, keep)
        self.step, self.lengths = step.to(PRECISION), lengths.to(PRECISION)
        squares = upper.diagonal().double().square()
        self.prices = (trade * squares / squares.log().mean().exp()).to(PRECISION)  # (C,)

    def fix(self, first: int, last: int, n: int = 1, m: int = 1) -> None:
        here = slice(first, last)
        upper = self.upper[here, here].contiguous()
        kernel = _fix_numba if self.weight.device.type == "cpu" else _fix_torch

        def fix_rows(rows: slice) -> None:
            part = self.weight[rows, here].T.contiguous()  # (b, r)
            values, errors = torch.empty_like(part), torch.empty_like(part)
            codes = torch.empty_like(part, dtype=torch.uint8)
            step = self.step[rows].contiguous()
            mask = upper.new_empty(0, 0).bool()
            if self.keep is not None:
                mask = self.keep[rows, here].T.contiguous()
            kernel(part, upper, step, self.prices[here], self.lengths, mask, codes, values, errors)
            self.values[rows, here], self.codes[rows, here] = values.T, codes.T
            self._move(rows, errors.T, here)

        parallel_map(fix_rows, self._rows())


def _fix_numba(*arguments: Any) -> None:
    _fix(*(a.numpy() for a in arguments))


@njit(cache=True, nogil=True)
def _fix(w, u, step, prices, lengths, keep, codes, values, errors):  # type: ignore[no-untyped-def]
    """Fixes the columns of a block one by one; w (b, r) is transposed, u (b, b) its part of U."""
    columns, rows = w.shape
    zero, most = np.float32(128), np.float32(127)
    for j in range(columns):
        price, inverse = prices[j], np.float32(1) / u[j, j]
        nothing = price * lengths[128]
        for r in range(rows):
            t = w[j, r] / step[r]
            near = min(max(np.rint(t), -most), most)
            lower = near - np.sign(near)  # the next one towards zero
            cost = (t - near) * (t - near) + price * lengths[np.int64(near + zero)]
            other = (t - lower) * (t - lower) + price * lengths[np.int64(lower + zero)]
            q = near
            if other < cost:
                q, cost = lower, other
            if t * t + nothing < cost or (keep.size and not keep[j, r]):
                q = np.float32(0)
            codes[j, r] = np.uint8(q + zero)
            values[j, r] = q * step[r]
            errors[j, r] = (w[j, r] - q * step[r]) * inverse
        for k in range(j + 1, columns):
            factor = u[j, k]
            for r in range(rows):
                w[k, r] -= errors[j, r] * factor


def _fix_torch(
    w: Tensor, u: Tensor, step: Tensor, prices: Tensor, lengths: Tensor, keep: Tensor,
    codes: Tensor, values: Tensor, errors: Tensor,
) -> None:  # fmt: skip
    """`_fix` on any device."""
    for j in range(len(w)):
        t = w[j] / step
        near = t.round().clamp(-LARGEST, LARGEST)
        candidates = torch.stack([near, near - near.sign(), torch.zeros_like(near)])  # (3, r)
        cost = (t - candidates).square() + prices[j] * lengths[(candidates + ZERO).long()]
        q = candidates.gather(0, cost.argmin(dim=0, keepdim=True))[0]
        if keep.numel():
            q = torch.where(keep[j], q, 0)
        codes[j] = (q + ZERO).to(torch.uint8)
        values[j] = q * step
        errors[j] = (w[j] - values[j]) / u[j, j]
        w[j + 1 :] -= u[j, j + 1 :, None] * errors[j]


def expected_lengths(spread: float) -> Tensor:
    """(256,) bits of codes whose values are normal with a deviation of `spread` steps.

    A start for `coded_sweep` before there are codes to count; far codes keep a finite length.

    Example:
        >>> lengths = expected_lengths(0.5)
        >>> bool(lengths[128] < lengths[129] < lengths[200] < 64)
        True
    """
    q = torch.arange(-ZERO, ZERO, dtype=torch.float64)
    scale = math.sqrt(2) * max(spread, 1e-6)
    share = 0.5 * (torch.special.erf((q + 0.5) / scale) - torch.special.erf((q - 0.5) / scale))
    return counted_lengths(share * 1e6)


def counted_lengths(counts: Tensor) -> Tensor:
    """(256,) bits of codes that occurred `counts` (256,) times; codes that did not have a length too.

    Those get a tail that falls off by half with every step from zero, so that they can come back.

    Example:
        >>> counts = torch.zeros(256); counts[128], counts[129] = 3, 1
        >>> counted_lengths(counts)[[128, 129]].round()
        tensor([0., 2.], dtype=torch.float64)
    """
    steps = (torch.arange(2 * ZERO, dtype=torch.float64, device=counts.device) - ZERO).abs()
    tail = torch.exp2(-steps.clamp(max=20))
    share = counts.double() + 0.01 * tail
    return -(share / share.sum()).log2()
