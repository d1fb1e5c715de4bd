"""Learned rounding: whether each weight goes up or down, decided by what the layer puts out.

    q = floor(x) + h(v),  h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)

AdaRound (Nagel et al., 2020, arXiv 2004.10568). The error of the outputs is a quadratic form in the errors
of the weights, tr(D H D^T) with H = E[x x^T], so that no inputs are kept and each step sees all of them.
Both factors of a product can be learned together (MLoRQ, Gordon et al., 2025, arXiv 2507.09616).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_at_least, check_finite, check_shape, check_square
from laconic.numerics.energies import ERRORS, row_errors
from laconic.numerics.parallel import one_thread
from laconic.numerics.soft_codes import PRECISION, SoftCodes

WEIGHTS_AT_ONCE = 1 << 22  # of whole rows that are trained together: bounds the memory


@dataclass(frozen=True)
class Annealing:
    """How rounding is learned.

    Args:
        steps: of RAdam; 0 rounds to the nearest. Papers take 20000 on batches of 32; each step here sees
            all inputs, and what follows was chosen for 300 to 1000.
        rate: its learning rate, above 0.
        weight: of the penalty `mean(1 - |2 h - 1|^beta)` beside the error, of which 1 is what rounding to
            the nearest leaves.
        warm_up: share of the steps before there is a penalty, 0 up to below 1.
        start: beta when the penalty sets in; it falls evenly from there.
        end: beta at the last step.
    """

    steps: int = 500
    rate: float = 1.0
    weight: float = 3.0
    warm_up: float = 0.2
    start: float = 20.0
    end: float = 2.0

    def __post_init__(self) -> None:
        check_at_least("steps", self.steps, 0)
        check_at_least("the penalty's weight", self.weight, 0)
        if not self.rate > 0:
            raise UsageError(f"the learning rate must be above 0, found {self.rate!r}")
        if not 0 <= self.warm_up < 1:
            raise UsageError(f"warm_up must be 0 up to below 1, found {self.warm_up!r}")
        if not self.start >= self.end > 1:
            raise UsageError(
                f"beta falls from start to end, both above 1: found {self.start!r}, {self.end!r}"
            )

    def beta(self, step: int) -> float | None:
        """The exponent at `step`, from 0; None during the warm-up.

        Example:
            >>> [Annealing(steps=11, warm_up=0.0).beta(step) for step in (0, 5, 10)]
            [20.0, 11.0, 2.0]
        """
        first = round(self.warm_up * self.steps)
        if step < first:
            return None
        return self.start + (self.end - self.start) * (step - first) / max(
            1, self.steps - 1 - first
        )


@one_thread()
def learned_rounding(
    weight: Tensor, scale: Tensor, zero: Tensor, moment: Tensor,
    *, high: int, low: int = 0, annealing: Annealing | None = None, keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Codes of a weight whose outputs are near those of the weight, each the one below or above it.

    Rows are learned on their own, each beside what rounding it to the nearest loses; where that loses no
    more it is kept, so that no row is worse than rounded.

    Args:
        weight: (R, C).
        scale: steps of the grid, not 0, (R, C) or broadcast to it.
        zero: codes of 0, likewise.
        moment: (C, C), H = E[x x^T], positive semi-definite.
        high: greatest code.
        low: least code.
        annealing: how; `Annealing()` by default.
        keep: (R, C) booleans, what is learned; the rest is rounded to the nearest. All by default.

    Returns:
        (R, C) whole numbers in low..high, float32.

    Raises:
        UsageError: shapes that do not fit, or no codes between low and high.
        BadWeights: NaN or infinity.

    Example:
        >>> weight, one = torch.tensor([[0.4, 0.3]]), torch.ones(1, 1)
        >>> codes = learned_rounding(weight, one, 0 * one, torch.ones(2, 2), high=3)
        >>> codes.tolist()  # inputs are equal: an error of 0.3 instead of 0.7
        [[1.0, 0.0]]
    """
    check_shape("the weight", weight, ("R", "C"))
    _check_layer(weight, scale, zero, moment)
    annealing = annealing or Annealing()
    rows, columns = weight.shape
    scale, zero = (part.expand(rows, -1) for part in (scale, zero))
    step = max(1, WEIGHTS_AT_ONCE // columns)
    found = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        soft = SoftCodes(weight[part], scale[part], zero[part], high, low)
        if keep is not None:
            soft.hold(~keep[part])
        found.append(_learned_rows(weight[part], soft, moment, annealing))
    return torch.cat(found)


def _learned_rows(weight: Tensor, soft: SoftCodes, moment: Tensor, annealing: Annealing) -> Tensor:
    h = moment.to(PRECISION)
    nearest = soft.nearest()
    before = row_errors(soft.decided(nearest) - weight.to(ERRORS), moment)  # (R,)
    each = torch.where(before > 0, before, torch.inf).to(PRECISION).unsqueeze(1)
    target = weight.to(PRECISION)

    def step(beta: float | None) -> None:
        gradient = 2 * ((soft.values() - target) @ h) / each
        soft.descend(gradient, beta, annealing.weight / weight.shape[1])

    _anneal([soft], step, annealing)
    codes = soft.codes()
    after = row_errors(soft.decided(codes) - weight.to(ERRORS), moment)
    return torch.where((after < before).unsqueeze(1), codes, nearest)


@one_thread()
def learned_factors(
    weight: Tensor, left: SoftCodes, right: SoftCodes, moment: Tensor,
    *, annealing: Annealing | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes of both factors of W' = A B, learned together for the least tr((W' - W) H (W' - W)^T).

    The error counts beside what rounding both to the nearest adds to that of the unrounded factors. Where
    that loses no more it is kept.

    Args:
        weight: (R, C), W.
        left: codes of A (R, r).
        right: codes of B (r, C).
        moment: (C, C), H, positive semi-definite.
        annealing: how; `Annealing()` by default.

    Returns:
        Codes (R, r) and (r, C), float32.

    Raises:
        UsageError: shapes that do not fit.
        BadWeights: NaN or infinity.
    """
    check_shape("the weight", weight, (len(left.v), right.v.shape[1]))
    check_shape("the right factor", right.v, (left.v.shape[1], weight.shape[1]))
    check_finite("the weight", weight)
    check_square("the second moment", moment, weight.shape[1])
    check_finite("the second moment", moment)
    annealing = annealing or Annealing()
    target, h = weight.to(PRECISION), moment.to(PRECISION)

    def error(a: Tensor, b: Tensor) -> float:
        product = left.decided(a) @ right.decided(b)
        return float(row_errors(product - weight.to(ERRORS), moment).sum())

    nearest = left.nearest(), right.nearest()
    before = error(*nearest)
    unrounded = (left.values().to(ERRORS) @ right.values().to(ERRORS)) - weight.to(ERRORS)
    added = before - float(row_errors(unrounded, moment).sum())
    if not added > 0:
        return nearest

    def step(beta: float | None) -> None:
        a, b = left.values(), right.values()
        pulled = 2 / added * ((a @ b - target) @ h)  # (R, C)
        left.descend(pulled @ b.T, beta, annealing.weight / a.numel())
        right.descend(a.T @ pulled, beta, annealing.weight / b.numel())

    _anneal([left, right], step, annealing)
    codes = left.codes(), right.codes()
    return codes if error(*codes) < before else nearest


def _anneal(
    learned: Sequence[SoftCodes], step: Callable[[float | None], None], annealing: Annealing
) -> None:
    """Takes the steps, all gradients being set by `step` of beta."""
    optimizer = torch.optim.RAdam([soft.v for soft in learned], lr=annealing.rate)
    for number in range(annealing.steps):
        step(annealing.beta(number))
        optimizer.step()


def _check_layer(weight: Tensor, scale: Tensor, zero: Tensor, moment: Tensor) -> None:
    check_finite("the weight", weight)
    check_square("the second moment", moment, weight.shape[1])
    check_finite("the second moment", moment)
    for name, part in (("scale", scale), ("zero", zero)):
        if part.ndim != 2 or part.shape[0] not in (1, len(weight)) or part.shape[1] not in (1, weight.shape[1]):  # fmt: skip
            raise UsageError(
                f"{name} must have the shape ({len(weight)}, {weight.shape[1]}) or 1 in place of "
                f"either, found {tuple(part.shape)}"
            )
    check_finite("scale", scale)
    if not scale.all():
        raise UsageError("no step of the grid may be 0")
