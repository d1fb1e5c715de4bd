"""Schedules: pure functions of the step, so that an interrupted run goes on where it was.

Each returns a factor in [0, 1] and takes `(step, steps)`, the step counted from 0. Bind the settings
with `functools.partial(cosine, warmup=0.05)`.
"""

import math
from collections.abc import Callable

from laconic.errors import UsageError

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int, *, warmup: float = 0.0) -> float:
    """1 after the warm-up.

    Args:
        step: from 0.
        steps: of the run.
        warmup: share of the steps, 0 to 1, over which the factor rises evenly to 1.

    Example:
        >>> [constant(step, 4, warmup=0.5) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    return _rise(step, steps, warmup)


def linear(step: int, steps: int, *, warmup: float = 0.1, floor: float = 0.0) -> float:
    """Falls evenly from 1 after the warm-up to `floor` at the end.

    Args:
        step: from 0.
        steps: of the run.
        warmup: share of the steps, 0 to 1, over which the factor rises evenly to 1.
        floor: what it would reach one step after the last, 0 to 1.

    Example:
        >>> [linear(step, 4, warmup=0.0) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    fall = 1 - _after(step, steps, warmup)
    return _rise(step, steps, warmup) * (floor + (1 - floor) * fall)


def cosine(step: int, steps: int, *, warmup: float = 0.1, floor: float = 0.0) -> float:
    """Falls along half a cosine from 1 after the warm-up to `floor` at the end.

    Args:
        step: from 0.
        steps: of the run.
        warmup: share of the steps, 0 to 1, over which the factor rises evenly to 1.
        floor: what it would reach one step after the last, 0 to 1.

    Source: SGDR (Loshchilov and Hutter, 2017, arXiv 1608.03983), equation 5, without restarts.

    Example:
        >>> round(cosine(50, 100, warmup=0.0), 6)
        0.5
    """
    fall = (1 + math.cos(math.pi * _after(step, steps, warmup))) / 2
    return _rise(step, steps, warmup) * (floor + (1 - floor) * fall)


def cubic(step: int, steps: int, *, begin: float = 0.0, end: float = 1.0) -> float:
    """How far a gradual pruner has come: 0 before `begin`, 1 from `end`, fast at first.

    The sparsity is `initial + (final - initial) * cubic(step, steps)`.

    Args:
        step: from 0.
        steps: of the run.
        begin: share of the steps at which it starts, 0 to 1.
        end: share of the steps at which it is done, above `begin`, at most 1.

    Source: To prune, or not to prune (Zhu and Gupta, 2017, arXiv 1710.01878), equation 1.

    Example:
        >>> [cubic(step, 4) for step in range(5)]
        [0.0, 0.578125, 0.875, 0.984375, 1.0]
    """
    if not 0 <= begin < end <= 1:
        raise UsageError(f"begin and end must rise within 0..1, found {begin} and {end}")
    way = (step / steps - begin) / (end - begin)
    return 1 - (1 - min(1.0, max(0.0, way))) ** 3


def _warm(steps: int, warmup: float) -> float:
    if not 0 <= warmup <= 1:
        raise UsageError(f"warmup is a share of the steps, 0 to 1, found {warmup}")
    return warmup * steps


def _rise(step: int, steps: int, warmup: float) -> float:
    warm = _warm(steps, warmup)
    return min(1.0, (step + 1) / warm) if warm else 1.0


def _after(step: int, steps: int, warmup: float) -> float:
    """The share of the steps behind the warm-up that is done."""
    warm = _warm(steps, warmup)
    return min(1.0, max(0.0, (step - warm) / (steps - warm))) if steps > warm else 0.0
