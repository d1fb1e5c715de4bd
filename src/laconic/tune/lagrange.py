"""`Lagrangian`: a callback that holds a size, a sparsity or anything else that has gradients at a target."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from laconic.errors import UsageError
from laconic.tune.schedules import Schedule
from laconic.tune.state import Callback, TrainState


def at_once(step: int, steps: int) -> float:
    """The whole target from the first step."""
    return 1.0


class Lagrangian(Callback):
    """Adds `lambda_1 g + lambda_2 g^2` to the loss, g being how far the measure is from its target.

    The multipliers climb along their own gradients, g and g^2, as the parameters descend. The papers
    start both at 0, and the measure swings about its target; a stiff lambda_2 damps that. The term comes into the gradients in `after_backward`; it is not in the history's loss.

    Args:
        measure: what is held at the target, such as the share of weights that is kept on average; one
            number with gradients.
        target: where it shall end.
        rate: of the multipliers' ascent, above 0.
        stiffness: of lambda_2 at the start, at least 0; large against the loss for a tight hold.
        schedule: way from where the measure starts to the target, 0 to 1: `at_once`, or
            `partial(cubic, end=0.5)`.

    Attributes:
        gaps: g at each step.
        multipliers: lambda_1 and lambda_2, now.

    Raises:
        UsageError: rate is not above 0, or stiffness below.

    Source: Structured Pruning of Large Language Models (Wang et al., 2020, arXiv 1910.04732),
    section 3.3, as Compresso (Guo et al., 2023, arXiv 2310.05015) uses it.
    """

    def __init__(
        self, measure: Callable[[], Tensor], target: float, *, rate: float = 0.1,
        stiffness: float = 10.0, schedule: Schedule = at_once,
    ) -> None:  # fmt: skip
        if not rate > 0 or not stiffness >= 0:
            raise UsageError(
                f"rate must be above 0 and stiffness at least 0, found {rate} and {stiffness}"
            )
        self.measure, self.target, self.rate, self.schedule = measure, target, rate, schedule
        self.multipliers = (0.0, float(stiffness))
        self.gaps: list[float] = []
        self._start = 0.0

    def on_start(self, state: TrainState) -> None:
        self._start = float(self.measure().detach())

    def after_backward(self, state: TrainState) -> None:
        way = self.schedule(state.step, state.steps)
        gap = self.measure() - (self._start + way * (self.target - self._start))
        first, second = self.multipliers
        (first * gap + second * gap.square()).backward()  # type: ignore[no-untyped-call]
        distance = float(gap.detach())
        self.multipliers = (first + self.rate * distance, second + self.rate * distance**2)
        self.gaps.append(distance)

    def state_dict(self) -> dict[str, Any]:
        return {
            "multipliers": list(self.multipliers),
            "gaps": list(self.gaps),
            "start": self._start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        first, second = state["multipliers"]
        self.multipliers, self.gaps = (first, second), list(state["gaps"])
        self._start = state["start"]
