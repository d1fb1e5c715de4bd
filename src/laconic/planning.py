"""Plans: which method, at which strength, for which layer; and how a budget makes one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from laconic.allocate.budget import Budget, Unit
from laconic.allocate.lagrangian import lagrangian
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.reports import relative_error
from laconic.calibrate.runner import RunOptions, run_layers
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.calibrate.steps import BlockView
from laconic.errors import BudgetError
from laconic.method import BlockMethod, LayerMethod
from laconic.models.layout import Layer
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.progress import SILENT, Progress
from laconic.registry import name_of
from laconic.tensors import CompressedTensor, Dense
from laconic.tensors.stored import Record

SAMPLE_WEIGHTS = 1 << 17  # of a layer, on which options are measured: whole rows, evenly spread
HEADER_BYTES = 120  # of a tensor in a safetensors header, its name aside
MOST_OPTIONS = 256  # of a chain that are measured on every layer


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
        limit: stored bytes that must not be exceeded, if there is a budget.
        of_layers: whether `limit` is of the compressed layers alone, not of the whole artefact.
        table: the measurements that a budget was spread over, to spread it again.
        target: bytes that the table was spread to.
        edits: changes of the structure, made first.
        planner: the method that planned it and its settings, as JSON, if one did.
        warnings: for the report.
        notes: for the report.
    """

    steps: list[PlannedStep | BlockMethod]
    limit: float | None = None
    of_layers: bool = False
    table: "OptionTable | None" = None
    target: float = 0.0
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
            steps = self.table.spread(target)
        except BudgetError as error:
            raise BudgetError(
                f"the budget of {self.limit:.0f} bytes cannot be reached; the smallest that was made "
                f"has {stored}"
            ) from error
        return replace(self, target=target, steps=list(steps))


@dataclass
class OptionTable:
    """What every option of a chain costs and loses on every layer.

    Attributes:
        layers: names.
        options: the chain at each strength.
        cost: (layers, options) stored bytes.
        error: (layers, options) lost share of the layer's energy, times its weights.
        weights: how many weights the layers have together.
    """

    layers: list[str]
    options: Sequence[Chain]
    cost: np.ndarray
    error: np.ndarray
    weights: int

    def spread(self, budget_bytes: float) -> list[PlannedStep]:
        """The chain with, for each layer, the option that loses least within `budget_bytes`."""
        chosen = lagrangian(self.cost, self.error, budget_bytes).tolist()
        return [
            PlannedStep(method, {name: self.options[k][i] for name, k in zip(self.layers, chosen)})
            for i, method in enumerate(self.options[0])
        ]


def plan_budget(
    source: ModelSource, chain: Chain | LayerMethod, budget: Budget,
    *, calibration: Calibration | None = None, also: Sequence[str] = (), coded: bool = True,
    options: RunOptions | None = None, progress: Progress = SILENT,
) -> Plan:  # fmt: skip
    """Measures the chain's options on every layer and spreads the budget over them.

    Args:
        source: the model.
        chain: one method or several, whose options are measured.
        budget: what to spread.
        calibration: sequences on which errors are measured, for methods that want statistics.
        also: as for `compress`.
        coded: whether embeddings and heads that are not compressed will be stored as byte planes,
            as they are in files, or left as they are, in memory.
        options: as for the runner.
        progress: follows the blocks.

    Raises:
        BudgetError: the budget's unit is none that this method can save, or it is below the
            smallest reachable, which the message names.
    """
    chain = (chain,) if isinstance(chain, LayerMethod) else chain
    if budget.unit not in (Unit.BITS, Unit.SHARE, Unit.BYTES):
        raise BudgetError(
            f"{name_of(type(chain[-1]))} saves stored bytes, not {budget.unit.value.strip('x ')}: "
            "give the budget as 4bit, 25% or 1.5GB"
        )
    table = measure_options(
        source, chain, calibration=calibration, also=also, options=options, progress=progress
    )
    rest = 0
    if budget.unit is Unit.BITS:
        limit = target = budget.amount * table.weights / 8
    else:
        rest = untouched_bytes(source, also, coded=coded)
        limit = budget.amount * (source.dense_bytes if budget.unit is Unit.SHARE else 1)
        target = limit - rest
    least = float(table.cost.min(axis=1).sum())
    if least > target:
        raise BudgetError(_unreachable(source, budget, least, rest, table.weights))
    of_layers = budget.unit is Unit.BITS
    return Plan(list(table.spread(target)), limit, of_layers, table, target)


def options_of(chain: Chain) -> list[Chain]:
    """The chain at every combination of its methods' strengths.

    Raises:
        BudgetError: there are too many to measure.
    """
    combinations = list(product(*(method.options() for method in chain)))
    if len(combinations) > MOST_OPTIONS:
        raise BudgetError(
            f"the chain has {len(combinations)} combinations of strengths, more than {MOST_OPTIONS}: "
            "spread the budget over one of its methods and apply the others to the result"
        )
    return combinations


class OptionProbe:
    """A step that measures what every option would cost and lose, and leaves the layers as they are."""

    changes_inputs = False

    def __init__(self, options: Sequence[Chain]) -> None:
        self.options = options
        self.names: list[str] = []
        self.costs: list[list[float]] = []
        self.errors: list[list[float]] = []
        self.weights = 0

    @property
    def wants(self) -> tuple[Statistic, ...]:
        """What any option wants."""
        return tuple(dict.fromkeys(s for chain in self.options for m in chain for s in m.wants))

    def revise_block(self, view: BlockView) -> None:
        """Measures every layer; sizes and errors are of evenly spread rows."""
        for layer in view.live.layers:
            weight, stats = view.live.weight(layer), view.stats[layer.name]
            sample = _some_rows(weight)
            scale = weight.numel() / max(1, sample.numel())
            measured = parallel_map(
                lambda chain, w=sample, s=stats: _try(chain, w, s),  # type: ignore[misc]
                self.options,
            )
            self.names.append(layer.name)
            self.weights += weight.numel()
            self.costs.append([scale * cost + HEADER_BYTES for cost, _ in measured])
            self.errors.append([error * weight.numel() for _, error in measured])


def _try(chain: Chain, weight: Tensor, stats: LayerStats) -> tuple[int, float]:
    """Stored bytes and relative error of a chain on some rows of a layer."""
    record, seen = Record(Dense(weight)), LayerStats(stats.layer, stats.collected)
    for method in chain:
        before = record.transform
        record = method.revise(weight, record, seen)
        if record.transform is not None and record.transform is not before:
            seen = stats.behind(record.transform)
    folded = weight if record.transform is None else record.transform.fold(weight)
    return record.weight.stored_bytes, output_error(folded, record.weight, seen)


def output_error(weight: Tensor, value: CompressedTensor, stats: LayerStats) -> float:
    """`tr(E H E^T) / tr(W H W^T)` with E = W - W'; of the weights alone where there is no moment."""
    found = stats.collected.get(SecondMoment())
    if found is None or found.sums is None:
        return relative_error(weight, value)
    moment = stats.mean(SecondMoment())
    dense = weight.flatten(1).double()
    lost = dense - value.dense(torch.float32).flatten(1).double()
    energy = [((part @ moment) * part).sum().item() for part in (lost, dense)]
    return max(0.0, energy[0]) / max(energy[1], torch.finfo(torch.float64).tiny)


def measure_options(
    source: ModelSource, chain: Chain | LayerMethod,
    *, calibration: Calibration | None = None, also: Sequence[str] = (),
    options: RunOptions | None = None, progress: Progress = SILENT,
) -> OptionTable:  # fmt: skip
    """Tries every option of a chain on some rows of every layer; keeps the sizes and errors."""
    chain = (chain,) if isinstance(chain, LayerMethod) else chain
    probe = OptionProbe(options_of(chain))
    run_layers(
        source, NoSink(), [probe], calibration=calibration if probe.wants else None, also=also,
        options=options, progress=progress, what="measuring options",
    )  # fmt: skip
    return OptionTable(
        probe.names, probe.options, np.array(probe.costs), np.array(probe.errors), probe.weights
    )


def _some_rows(weight: Tensor) -> Tensor:
    """Every n-th row of `weight`, about `SAMPLE_WEIGHTS` weights."""
    step = min(weight.shape[0], max(1, weight.numel() // SAMPLE_WEIGHTS)) or 1
    return weight[::step].contiguous()


def untouched_bytes(source: ModelSource, also: Sequence[str], *, coded: bool = True) -> int:
    """Stored bytes of everything that is not compressed, headers included."""
    chosen, kept = choose_extra(source, also)
    touched = {layer.parameter for block in source.blocks for layer in block.layers}
    touched |= {layer.parameter for layer in chosen}
    total = 0
    for name, size in source.sizes().items():
        if name in touched:
            continue
        if coded and name in kept:
            size = Dense(source.read([name])[name]).stored_bytes
        total += size + len(name) + HEADER_BYTES
    return total


def _unreachable(source: ModelSource, budget: Budget, least: float, rest: int, weights: int) -> str:
    if budget.unit is Unit.BITS:
        smallest = f"{_up(8 * least / weights)}bit"
    elif budget.unit is Unit.SHARE:
        smallest = f"{_up(100 * (least + rest) / source.dense_bytes)}%"
    else:
        smallest = f"{_up((least + rest) / 1e6, 4)}MB"
    hint = " (--also embeddings --also rest would allow less)" if rest else ""
    return f"the budget {budget} cannot be reached; the smallest is about {smallest}{hint}"


def _up(amount: float, digits: int = 2) -> str:
    """Rounded up, so that it can be given as the budget."""
    return f"{math.ceil(amount * 10**digits) / 10**digits:.{digits}f}"
