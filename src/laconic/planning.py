"""Plans: which method, at which strength, for which layer; `laconic.budgeting` makes them of budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from laconic.allocate.lagrangian import lagrangian
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Statistic
from laconic.errors import BudgetError
from laconic.method import BlockMethod, LayerMethod
from laconic.models.layout import Layer
from laconic.registry import name_of
from laconic.tensors.stored import Record

FINER = 16  # strengths between two that are measured, the first included
#: What errors are weighed by when a budget is spread: a power of what each layer's error adds to the loss.
POWERS = {"loss": 1.0, "root of loss": 0.5, "energy": 0.0}
ALIKE = "one strength"  # for all layers

Chain = tuple[LayerMethod, ...]


@dataclass(frozen=True)
class PlannedStep:
    """One method of a chain, with the settings that single layers have instead; a `LayerStep`.

    Attributes:
        method: for layers that `choices` does not name.
        choices: by layer name.
        only: whether layers that `choices` does not name stay as they are.
    """

    method: LayerMethod
    choices: Mapping[str, LayerMethod] = field(default_factory=dict)
    only: bool = False

    @property
    def wants(self) -> tuple[Statistic, ...]:
        """What any layer's method wants."""
        methods = dict.fromkeys([*self.choices.values(), *(() if self.only else (self.method,))])
        return tuple(dict.fromkeys(s for method in methods for s in method.wants))

    @property
    def changes_inputs(self) -> bool:
        """Whether what follows needs statistics of its own."""
        return self.method.changes_inputs

    def revise(self, layer: Layer, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """What the layer's method makes of it."""
        method = self.choices.get(layer.name, None if self.only else self.method)
        return record if method is None else method.revise(weight, record, stats)

    def recipe(self) -> dict[str, Any]:
        """The method and its settings as JSON; layer by layer where they differ."""
        entry = {"method": name_of(type(self.method)), "settings": self.method.settings()}
        if self.choices:
            entry["layers"] = {name: m.settings() for name, m in self.choices.items()}
        return entry


def planned_steps(methods: Mapping[str, LayerMethod]) -> list[PlannedStep]:
    """One step for each class of methods among the layers' own; layers not named stay as they are."""
    by_class: dict[type, dict[str, LayerMethod]] = {}
    for name, method in methods.items():
        by_class.setdefault(type(method), {})[name] = method
    return [PlannedStep(next(iter(c.values())), c, only=True) for c in by_class.values()]


@dataclass
class Plan:
    """A chain of steps, and how large what they make may be.

    Attributes:
        steps: in order; each a `PlannedStep`, or a method that sees blocks.
        limit: bytes that must not be exceeded, if there is a budget.
        of_layers: whether `limit` is of the compressed layers alone, not of the whole artefact.
        resident: whether `limit` is of bytes in memory, not in files.
        table: the measurements that a budget was spread over, to spread it again.
        target: bytes that the table was spread to.
        by: what errors were weighed by, one of `POWERS`, or `ALIKE`.
        edits: changes of the structure, made first.
        planner: the method that planned it and its settings, as JSON, if one did.
        warnings: for the report.
        notes: for the report.
    """

    steps: list[PlannedStep | BlockMethod]
    limit: float | None = None
    of_layers: bool = False
    resident: bool = False
    table: "OptionTable | None" = None
    target: float = 0.0
    by: str = "loss"
    edits: tuple[dict[str, Any], ...] = ()
    planner: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, methods: Sequence[LayerMethod | BlockMethod]) -> Self:
        """Every layer through the same chain."""
        return cls([PlannedStep(m) if isinstance(m, LayerMethod) else m for m in methods])

    def recipe(self) -> list[dict[str, Any]]:
        """The chain as JSON."""
        return ([self.planner] if self.planner else []) + [
            step.recipe()
            if isinstance(step, PlannedStep)
            else {"method": name_of(type(step)), "settings": step.settings()}
            for step in self.steps
        ]

    def tightened(self, stored: int) -> "Plan":
        """The plan for a target lower by what the finished file was too large."""
        assert self.table is not None and self.limit is not None
        target = self.target - (stored - self.limit) - 64
        try:
            steps = self.table.spread(target, self.by)
        except BudgetError as error:
            raise BudgetError(
                f"the budget of {self.limit:.0f} bytes cannot be reached; the smallest that was made "
                f"has {stored}"
            ) from error
        behind = [step for step in self.steps if not isinstance(step, PlannedStep)]
        return replace(self, target=target, steps=[*steps, *behind])


@dataclass
class OptionTable:
    """What every option of a chain costs and loses on every layer.

    Attributes:
        layers: names.
        options: the chain at each strength.
        cost: (layers, options) stored bytes, or what else a budget counts.
        error: (layers, options) lost share of the layer's energy, times its weights.
        weights: how many weights the layers have together.
        importance: (layers,) what that share adds to the loss for each weight, up to a factor; all
            alike where it is not known.
    """

    layers: list[str]
    options: Sequence[Chain]
    cost: np.ndarray
    error: np.ndarray
    weights: int
    importance: np.ndarray | None = None

    def weighed(self, by: str = "loss") -> np.ndarray:
        """(layers, options) errors that may be added up, weighed by one of `POWERS`."""
        if self.importance is None:
            return self.error
        return np.asarray(self.error * self.importance[:, None] ** POWERS[by])

    def spread(self, budget_bytes: float, by: str = "loss") -> list[PlannedStep]:
        """The chain with, for each layer, the option that loses least within `budget_bytes`.

        Args:
            budget_bytes: upper limit.
            by: what errors are weighed by, one of `POWERS`; `ALIKE` for the one option that all layers
                can have.

        Raises:
            BudgetError: nothing is within the limit.
        """
        if by == ALIKE:
            chosen = [self._alike(budget_bytes)] * len(self.layers)
        else:
            chosen = lagrangian(self.cost, self.weighed(by), budget_bytes).tolist()
        return [
            PlannedStep(method, {name: self.options[k][i] for name, k in zip(self.layers, chosen)})
            for i, method in enumerate(self.options[0])
        ]

    def _alike(self, budget_bytes: float) -> int:
        costs, errors = self.cost.sum(axis=0), self.weighed().sum(axis=0)
        if not costs.min() <= budget_bytes:
            raise BudgetError(
                f"no option fits all layers: the smallest costs {costs.min():.0f} of {budget_bytes:.0f}"
            )
        return int(np.where(costs <= budget_bytes, errors, np.inf).argmin())

    def refined(self) -> "OptionTable":
        """With options between those that were measured, where the method has such."""
        if len(self.options[0]) > 1:
            return self
        options: list[Chain] = []
        costs, errors = [], []
        with np.errstate(divide="ignore"):
            log_error = np.log(self.error)
        for k, (weaker,) in enumerate(self.options):
            options.append((weaker,))
            costs.append(self.cost[:, k])
            errors.append(self.error[:, k])
            stronger = self.options[k + 1][0] if k + 1 < len(self.options) else weaker
            for share in (np.arange(1, FINER) / FINER).tolist():
                between = None if stronger is weaker else weaker.between(stronger, share)
                if between is None:
                    break
                options.append((between,))
                costs.append((1 - share) * self.cost[:, k] + share * self.cost[:, k + 1])
                errors.append(np.exp((1 - share) * log_error[:, k] + share * log_error[:, k + 1]))
        return replace(
            self, options=options, cost=np.stack(costs, axis=1), error=np.stack(errors, axis=1)
        )
