"""Codes between two whole numbers: what learned rounding trains, of AdaRound.

q = floor(x) + h(v),  h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
"""

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics.energies import ERRORS

PRECISION = torch.float32  # of the training; errors that decide are summed in float64
LOW, HIGH = -0.1, 1.1  # between which the sigmoid is stretched


def opened(v: Tensor) -> Tensor:
    """The share `h` in 0..1 of a step that is rounded up; differentiable.

    Example:
        >>> opened(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (v.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def closed(share: Tensor) -> Tensor:
    """The `v` whose `opened` is `share` (0..1)."""
    return torch.logit((share - LOW) / (HIGH - LOW))


class SoftCodes:
    """Codes of a tensor on a uniform grid that lie between two whole numbers until they are decided.

    Args:
        target: (R, C) values to be rounded.
        scale: steps, not 0, broadcast to (R, C).
        zero: codes of 0, broadcast likewise.
        high: the greatest code; the least is `low`.
        low: see there.

    Attributes:
        v: (R, C) what is learned.
    """

    def __init__(
        self, target: Tensor, scale: Tensor, zero: Tensor, high: int, low: int = 0
    ) -> None:
        if not low < high:
            raise UsageError(f"codes run from low to high, found {low} and {high}")
        self._scale, self._zero = scale.to(PRECISION), zero.to(PRECISION)
        self._place = (target.to(PRECISION) / self._scale + self._zero).clamp(low, high)
        self._floor = self._place.floor().clamp(low, high - 1)
        self.v = closed(self._place - self._floor)

    def hold(self, where: Tensor) -> None:
        """Has the codes `where` (R, C) booleans stay those of rounding to the nearest."""
        nearest = (self.v >= 0).to(self.v) * 2 - 1
        self.v = torch.where(where, nearest * torch.inf, self.v)

    def values(self) -> Tensor:
        """(R, C) what the codes stand for now."""
        return self._of(self._floor + opened(self.v))

    def codes(self) -> Tensor:
        """(R, C) whole numbers, decided."""
        return self._floor + (self.v >= 0)

    def nearest(self) -> Tensor:
        """(R, C) codes of rounding to the nearest."""
        return self._place.round()

    def decided(self, codes: Tensor) -> Tensor:
        """(R, C) float64, what whole `codes` stand for."""
        return (codes.to(ERRORS) - self._zero.to(ERRORS)) * self._scale.to(ERRORS)

    def descend(self, gradient: Tensor, beta: float | None, weight: float | Tensor) -> None:
        """Sets the gradient of `v` from that of the values (R, C), and of the penalty.

        `weight` is that of the penalty of one element, its mean being over all.
        """
        sigmoid = self.v.sigmoid()
        share = sigmoid * (HIGH - LOW) + LOW
        inside = (share >= 0) & (share <= 1)
        pull = gradient * self._scale
        if beta is not None:
            off = 2 * share.clamp(0, 1) - 1
            pull = pull - weight * (2 * beta) * off.abs().pow(beta - 1) * off.sign()
        self.v.grad = (
            pull * inside * sigmoid * (1 - sigmoid) * (HIGH - LOW)
        )  # 0 where v is infinite

    def _of(self, codes: Tensor) -> Tensor:
        return (codes - self._zero) * self._scale
