"""What a running training shows its callbacks, and what it leaves behind."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laconic.errors import LaconicError


class Diverged(LaconicError):
    """The loss or its gradient is NaN or infinite; names the step."""


@dataclass
class History:
    """What was measured, one entry for each step.

    Attributes:
        loss: mean over the step's batches.
        rate: learning rate of the first parameter group.
        norm: Euclidean length of the whole gradient, before it was clipped.
        stopped: whether a callback ended the run early.
    """

    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    stopped: bool = False

    def __len__(self) -> int:
        return len(self.loss)


@dataclass
class TrainState:
    """Where a run is.

    Attributes:
        model: that is trained.
        optimizer: its learning rates are set before each step.
        steps: that the run has.
        step: that are done.
        loss: of the latest step; NaN before there is one.
        history: of all steps.
        stop: a callback sets it to end the run after this step.
    """

    model: nn.Module
    optimizer: Optimizer
    steps: int
    step: int = 0
    loss: float = math.nan
    history: History = field(default_factory=History)
    stop: bool = False

    @property
    def parameters(self) -> list[Tensor]:
        """All that the optimizer changes."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class Callback:
    """Looks on and joins in at five places of a run; every method may be left out.

        on_start  ( before_step  forward, backward  after_backward  optimizer  after_step )*  on_end

    In `after_backward` a callback may change gradients, or add to them by calling `backward` on a term
    of its own. `laconic.tune.trainer` runs the same callbacks inside the Hugging Face `Trainer`.
    """

    def on_start(self, state: TrainState) -> None:
        """Before the first step, and before what an interrupted run left is read."""

    def before_step(self, state: TrainState) -> None:
        """Before the batches of a step; gradients are empty."""

    def after_backward(self, state: TrainState) -> None:
        """The gradients are complete and not yet clipped; `state.loss` is known."""

    def after_step(self, state: TrainState) -> None:
        """The optimizer has moved the parameters; `state.step` counts this step."""

    def on_end(self, state: TrainState) -> None:
        """After the last step; not called where a run fails."""

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs: tensors, numbers, text, lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Whether each module trains or evaluates is as before when this ends."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model evaluates, without gradients, inside."""
    with kept_modes(model), torch.no_grad():
        model.eval()
        yield
