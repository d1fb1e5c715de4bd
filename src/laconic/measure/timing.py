"""The time of one function, alone or in turn with a rival."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from laconic.errors import UsageError
from laconic.measure.speed import ROUNDS, seconds

Clock = Literal["wall", "cpu"]
SAMPLE = 1e-3  # seconds that a sample should take at least; shorter calls are repeated
TRIES = 3  # to see how short a call is


@dataclass(frozen=True)
class Timing:
    """What a function takes.

    Attributes:
        seconds: median of the rounds.
        least: the fastest round, nearest to what an undisturbed machine takes.
        rounds: how many there were.
        threads: torch threads at the time.
        clock: `wall`, or `cpu`: the time that the process computed.
        ratio: how many times faster than the rival; None without one.
    """

    seconds: float
    least: float
    rounds: int
    threads: int
    clock: Clock
    ratio: float | None = None


def time_call(
    function: Callable[[], object], *, rival: Callable[[], object] | None = None,
    rounds: int = ROUNDS, threads: int | None = None, clock: Clock = "wall",
    device: torch.device | str = "cpu",
) -> Timing:  # fmt: skip
    """Times a function after a warm-up; in turn with a rival, where there is one.

    Args:
        function: what is timed; calls shorter than a millisecond are repeated in each round.
        rival: what `ratio` is against.
        rounds: at least 1.
        threads: of torch; as many as it has by default.
        clock: `wall`; or `cpu`, which is the same for one thread on an idle machine, and on a busy
            one does not count waiting.
        device: a GPU is waited for before the clock is read.

    Raises:
        UsageError: no rounds, or the CPU clock with several threads or a GPU.

    Example:
        >>> time_call(lambda: sum(range(1000)), rounds=3).rounds
        3
    """
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, found {rounds}")
    with _threads(threads) as count:
        if clock == "cpu" and (count > 1 or torch.device(device).type != "cpu"):
            raise UsageError(
                f"the CPU clock is for one thread on a CPU, found {count} on {device}: use wall"
            )
        ours = _Sampled(function, clock, device)
        theirs = None if rival is None else _Sampled(rival, clock, device)
        seconds(ours, theirs or (lambda: None), rounds)
    median = statistics.median(ours.samples)
    ratio = None if theirs is None else statistics.median(theirs.samples) / median
    return Timing(median, min(ours.samples), rounds, count, clock, ratio)


class _Sampled:
    """A function whose calls are timed, short ones several at a time."""

    def __init__(
        self, function: Callable[[], object], clock: Clock, device: torch.device | str
    ) -> None:
        self._function, self._device = function, torch.device(device)
        self._now = time.perf_counter if clock == "wall" else time.process_time
        self._samples: list[float] = []
        self._run(1)
        once = min(self._run(1) for _ in range(TRIES))
        self._repeats = max(1, math.ceil(SAMPLE / max(once, 1e-7)))

    def __call__(self) -> None:
        """One sample."""
        self._samples.append(self._run(self._repeats) / self._repeats)

    @property
    def samples(self) -> list[float]:
        """Seconds of a call in each round; the first round warmed up."""
        return [max(sample, 1e-9) for sample in self._samples[1:]]

    def _run(self, times: int) -> float:
        started = self._now()
        for _ in range(times):
            self._function()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._now() - started


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
