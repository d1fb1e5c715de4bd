"""Callbacks that any training may use."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tune.state import Callback, TrainState, evaluating


class KeepBest(Callback):
    """Measures now and then, stops when nothing gets better, and leaves the best parameters there.

    The start counts as well, so that a run never ends worse than it began.

    Args:
        measure: what shall be small; called in evaluation mode, without gradients.
        every: steps between two measurements; the end is always measured.
        patience: measurements without a gain after which the run stops; never by default.

    Attributes:
        values: all measurements, that of the start first.
        best: the smallest.

    Raises:
        UsageError: every or patience is below 1.
    """

    def __init__(
        self, measure: Callable[[], float], *, every: int, patience: int | None = None
    ) -> None:
        if every < 1 or (patience is not None and patience < 1):
            raise UsageError(f"every and patience must be at least 1, found {every}, {patience}")
        self.measure, self.every, self.patience = measure, every, patience
        self.values: list[float] = []
        self.best = math.inf
        self._when = 0  # which measurement was the best
        self._parameters: list[Tensor] = []
        self._kept: list[Tensor] = []

    def on_start(self, state: TrainState) -> None:
        self._parameters = state.parameters
        self._look(state)

    def after_step(self, state: TrainState) -> None:
        if state.step % self.every and state.step < state.steps and not state.stop:
            return
        self._look(state)
        waited = len(self.values) - 1 - self._when
        state.stop |= self.patience is not None and waited >= self.patience

    def on_end(self, state: TrainState) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Sets the parameters to the best that were measured."""
        for parameter, value in zip(self._parameters, self._kept):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        kept = [value.clone() for value in self._kept]
        return {"values": list(self.values), "best": self.best, "when": self._when, "kept": kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.best = list(state["values"]), state["best"]
        self._when = state["when"]
        for mine, value in zip(self._kept, state["kept"]):
            mine.copy_(value)

    def _look(self, state: TrainState) -> None:
        with evaluating(state.model):
            value = float(self.measure())
        if value < self.best or not self._kept:
            self.best = value if value < self.best else self.best
            self._when = len(self.values)
            self._kept = [parameter.detach().clone() for parameter in self._parameters]
        self.values.append(value)
