"""Plans: which method, at which strength, for which layer; and how a budget makes one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from laconic.allocate.budget import Budget, Unit
from laconic.allocate.lagrangian import lagrangian
from laconic.calibrate.runner import checked_weight, choose_extra, relative_error
from laconic.errors import BudgetError
from laconic.method import LayerMethod
from laconic.models.layout import Layer
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.registry import name_of
from laconic.tensors import CompressedTensor, Dense

SAMPLE_WEIGHTS = 1 << 17  # of a layer, on which options are measured: whole rows, evenly spread
HEADER_BYTES = 120  # of a tensor in a safetensors header, its name aside


@dataclass
class Plan:
    """The method for each layer; callable as the runner's `compress`.

    Attributes:
        method: for layers that `choices` does not name.
        choices: by layer name, where a budget was spread.
        limit: stored bytes that must not be exceeded, if there is a budget.
        of_layers: whether `limit` is of the compressed layers alone, not of the whole artefact.
        seen: the layers that were compressed, in order.
        table: the measurements that a budget was spread over, to spread it again.
        warnings: for the report.
    """

    method: LayerMethod
    choices: dict[str, LayerMethod] = field(default_factory=dict)
    limit: float | None = None
    of_layers: bool = False
    table: "OptionTable | None" = None
    target: float = 0.0
    seen: list[Layer] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __call__(self, layer: Layer, weight: Tensor) -> CompressedTensor:
        self.seen.append(layer)
        return self.choices.get(layer.name, self.method).compress_weight(weight)

    def recipe(self) -> list[dict[str, Any]]:
        """The method and its settings as JSON; layer by layer where they differ."""
        entry: dict[str, Any] = {
            "method": name_of(type(self.method)),
            "settings": self.method.settings(),
        }
        if self.choices:
            entry["layers"] = {name: m.settings() for name, m in self.choices.items()}
        return [entry]

    def tightened(self, stored: int) -> "Plan":
        """The plan for a target lower by what the finished file was too large."""
        assert self.table is not None and self.limit is not None
        target = self.target - (stored - self.limit) - 64
        try:
            choices = self.table.spread(target)
        except BudgetError as error:
            raise BudgetError(
                f"the budget of {self.limit:.0f} bytes cannot be reached; the smallest that was made "
                f"has {stored}"
            ) from error
        return replace(self, target=target, choices=choices, seen=[])


@dataclass
class OptionTable:
    """What every option of a method costs and loses on every layer.

    Attributes:
        layers: names.
        options: the method at each strength.
        cost: (layers, options) stored bytes.
        error: (layers, options) lost squared weight relative to the layer, times its weights.
        weights: how many weights the layers have together.
    """

    layers: list[str]
    options: Sequence[LayerMethod]
    cost: np.ndarray
    error: np.ndarray
    weights: int

    def spread(self, budget_bytes: float) -> dict[str, LayerMethod]:
        """The option of each layer that loses least within `budget_bytes`."""
        chosen = lagrangian(self.cost, self.error, budget_bytes)
        return {name: self.options[k] for name, k in zip(self.layers, chosen.tolist())}


def plan_budget(
    source: ModelSource, method: LayerMethod, budget: Budget,
    *, also: Sequence[str] = (), coded: bool = True, progress: Progress = SILENT,
) -> Plan:  # fmt: skip
    """Measures the method's options on every layer and spreads the budget over them.

    Args:
        source: the model.
        method: whose options are measured.
        budget: what to spread.
        also: as for `compress`.
        coded: whether embeddings and heads that are not compressed will be stored as byte planes,
            as they are in files, or left as they are, in memory.
        progress: follows the blocks.

    Raises:
        BudgetError: the budget's unit is none that this method can save, or it is below the
            smallest reachable, which the message names.
    """
    if budget.unit not in (Unit.BITS, Unit.SHARE, Unit.BYTES):
        raise BudgetError(
            f"{name_of(type(method))} saves stored bytes, not {budget.unit.value.strip('x ')}: "
            "give the budget as 4bit, 25% or 1.5GB"
        )
    table = measure_options(source, method, also=also, progress=progress)
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
    return Plan(method, table.spread(target), limit, of_layers, table, target)


def measure_options(
    source: ModelSource, method: LayerMethod,
    *, also: Sequence[str] = (), progress: Progress = SILENT,
) -> OptionTable:  # fmt: skip
    """Tries every option of `method` on some rows of every layer; keeps the sizes and errors."""
    options = method.options()
    names: list[str] = []
    costs: list[list[float]] = []
    errors: list[list[float]] = []
    weights = 0

    def measure(layer: Layer, weight: Tensor) -> None:
        nonlocal weights
        weights += weight.numel()
        names.append(layer.name)
        sample = _some_rows(weight)
        scale = weight.numel() / max(1, sample.numel())
        values = [option.compress_weight(sample) for option in options]
        costs.append([scale * value.stored_bytes + HEADER_BYTES for value in values])
        errors.append([relative_error(sample, value) * weight.numel() for value in values])

    for block in progress.track(source.blocks, "measuring options"):
        tensors = source.read({layer.parameter for layer in block.layers})
        for layer in block.layers:
            measure(layer, checked_weight(layer, tensors))
    for layer in choose_extra(source, also)[0]:
        measure(layer, checked_weight(layer, source.read([layer.parameter])))
    return OptionTable(names, options, np.array(costs), np.array(errors), weights)


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
