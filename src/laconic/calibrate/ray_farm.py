"""Layers farmed out to Ray workers: the same bytes as at home, on as many machines as there are."""

import logging
from collections.abc import Sequence
from typing import Any

from laconic.calibrate.steps import LayerStep, Task, work
from laconic.errors import MissingExtra, UsageError
from laconic.numerics.parallel import one_thread
from laconic.tensors.stored import Record


class RayFarm:
    """Sends each layer, with what is known of its inputs, to a worker of one thread.

    Args:
        workers: at least 1; of a cluster of our own. Where Ray is connected to a cluster already, or
            the environment names one (`RAY_ADDRESS`), that cluster's workers are used.

    Raises:
        MissingExtra: Ray is not installed.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UsageError(f"ray takes a number of workers, at least 1, found {workers}")
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray", "ray") from None
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(
                num_cpus=workers, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        self._work = ray.remote(num_cpus=1, max_retries=2)(_alone)

    def map(self, step: LayerStep, tasks: Sequence[Task]) -> list[tuple[Record, list[str]]]:
        """What `step` makes of each task, and what it noted, in order."""
        shared = self._ray.put(step)
        pending = [self._work.remote(shared, task) for task in tasks]
        results: list[tuple[Record, list[str]]] = self._ray.get(pending)
        return results

    def close(self) -> None:
        """Ends the cluster that this farm started."""
        if self._started:
            self._ray.shutdown()


def _alone(step: LayerStep, task: Task) -> tuple[Record, list[str]]:
    with one_thread():
        return work(step, task)
