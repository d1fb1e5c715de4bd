"""Speed as a ratio: two functions in turn, medians, in one run."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def speed_ratio(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS
) -> float:
    """How many times faster `ours` is than `theirs`: median seconds theirs / ours.

    Both run once to warm up, then `rounds` times in turn.
    """
    slow, fast = seconds(theirs, ours, rounds)
    return statistics.median(slow) / statistics.median(fast)


def seconds(
    first: Callable[[], object], second: Callable[[], object], rounds: int = ROUNDS
) -> tuple[list[float], list[float]]:
    """Seconds of each run of two functions, run in turn after a warm-up of both."""
    times: tuple[list[float], list[float]] = ([], [])
    first()
    second()
    for _ in range(rounds):
        for function, kept in zip((first, second), times):
            started = time.perf_counter()
            function()
            kept.append(time.perf_counter() - started)
    return times
