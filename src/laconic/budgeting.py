"""How a budget becomes a plan: a limit in bytes, or in what is counted, spread over the layers."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from laconic.allocate.budget import Budget, Unit
from laconic.allocate.trial import Trial
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.options import RunOptions
from laconic.calibrate.sensitivity import measure_sensitivity
from laconic.calibrate.statistics import SecondMoment
from laconic.errors import BudgetError, DataError, UsageError
from laconic.measure.flops import count, count_parameters
from laconic.measure.values import kept, products, transform_products
from laconic.measured import MeasuredTables
from laconic.method import LayerMethod
from laconic.models.layout import Layer
from laconic.models.source import ModelSource
from laconic.planning import ALIKE, POWERS, Chain, OptionTable, Plan
from laconic.probing import (
    Size,
    blob_bytes,
    measure_options,
    options_of,
    resident_bytes,
    stored_bytes,
    untouched_bytes,
)
from laconic.progress import SILENT, Progress
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.registry import name_of
from laconic.tensors.stored import Record

STORED = (Unit.BITS, Unit.SHARE, Unit.BYTES)


def plan_budget(
    source: ModelSource, chain: Chain | LayerMethod, budget: Budget,
    *, calibration: Calibration | None = None, also: Sequence[str] = (), coded: bool = True,
    options: RunOptions | None = None, progress: Progress = SILENT,
    tables: MeasuredTables | None = None,
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
        tables: where measurements are looked up, and kept, if the budget is of bytes.

    Raises:
        BudgetError: the budget's unit is none that this method can save, or it is below the
            smallest reachable, which the message names.
    """
    chain = (chain,) if isinstance(chain, LayerMethod) else chain
    if budget.unit is Unit.LATENCY:
        raise BudgetError(
            f"{name_of(type(chain[-1]))} changes what weights are, not how long they take: give the "
            "budget as 4bit, 25%, 1.5GB, 0.7x params or 0.6x flops"
        )
    size: Size = stored_bytes
    if budget.resident:
        size = resident_bytes
    elif budget.unit is Unit.BITS:
        size = blob_bytes
    whole = rest = 0.0
    if budget.unit not in STORED:
        size, whole, rest = _counted(source, budget.unit, also, calibration)
        tables = None  # how often a layer is used hangs on more than a table's name says
    table = _measured(source, chain, size, calibration, also, options, progress, tables).refined()
    plan = _plan(source, table, chain, budget, whole, rest, also, coded)
    if calibration is None:
        return plan
    try:
        trial = Trial(source, calibration, also=also, options=options, progress=progress)
    except (UsageError, DataError) as reason:
        return replace(plan, notes=[*plan.notes, f"the plan was not tried on the model: {reason}"])
    return best_of(plan, trial)


def _measured(
    source: ModelSource, chain: Chain, size: Size, calibration: Calibration | None,
    also: Sequence[str], options: RunOptions | None, progress: Progress,
    tables: MeasuredTables | None,
) -> OptionTable:  # fmt: skip
    """What every option costs and loses: as it was kept, or measured."""
    counted = size.__name__
    kept = None if tables is None else tables.get(counted, options_of(chain))
    if kept is not None:
        return kept
    sensitivity: dict[str, Tensor] = {}
    if calibration is not None and any(SecondMoment() in method.wants for method in chain):
        device = (options or RunOptions()).device
        sensitivity = measure_sensitivity(source, calibration, device=device, progress=progress)
    table = measure_options(
        source, chain, calibration=calibration, also=also, options=options, progress=progress,
        size=size, sensitivity=sensitivity,
    )  # fmt: skip
    if tables is not None:
        tables.put(counted, table)
    return table


def _plan(
    source: ModelSource, table: OptionTable, chain: Chain, budget: Budget, whole: float, rest: float,
    also: Sequence[str], coded: bool,
) -> Plan:  # fmt: skip
    """A first plan."""
    if budget.unit not in STORED:
        return _plan_counted(table, chain, budget, whole, rest)
    if budget.unit is Unit.BITS:
        limit = target = budget.amount * table.weights / 8
    else:
        rest = untouched_bytes(source, also, coded=coded and not budget.resident)
        limit = budget.amount * (source.dense_bytes if budget.unit is Unit.SHARE else 1)
        target = limit - rest
    least = float(table.cost.min(axis=1).sum())
    if least > target:
        raise BudgetError(_unreachable(source, budget, least, rest, table.weights))
    return Plan(
        list(table.spread(target)), limit, budget.unit is Unit.BITS, budget.resident, table, target
    )


def best_of(plan: Plan, trial: Trial) -> Plan:
    """Of several ways to spread a plan's budget, the one after which the model answers most as before.

    Errors are weighed by what they add to the loss, by its root, and not at all; and all layers get one strength.
    """
    assert plan.table is not None
    weighings = ("energy",) if plan.table.importance is None else POWERS
    plans: dict[str, Plan] = {}
    for by in (*weighings, ALIKE):
        try:
            steps = plan.table.spread(plan.target, by)
        except BudgetError:  # no one strength that all layers can have
            continue
        if all(steps != other.steps for other in plans.values()):
            plans[by] = replace(plan, steps=[*steps], by=by)
    if len(plans) == 1:
        return plan
    moved = {by: trial(other.steps) for by, other in plans.items()}
    best = min(moved, key=lambda by: moved[by])
    told = ", ".join(f"{moved[by]:.4g} by {by}" for by in moved)
    note = f"plans tried on {trial.sequences} sequences, nats from the dense model: {told}; the least is made"
    return replace(plans[best], notes=[*plan.notes, note])


def default_method(budget: Budget, data: bool) -> tuple[LayerMethod, str]:
    """The method for a budget that comes without one, and why.

    Args:
        budget: what counts.
        data: whether there is calibration data.
    """
    if budget.unit not in STORED:
        raise UsageError(
            f"a budget of {budget} needs a method that saves that: give --method, such as wanda or svd"
        )
    if budget.resident:
        name = "gptq" if data else "rtn"
        why = f"{name}, since memory counts: integers of 2 to 8 bits, which stay packed there"
        return (GPTQ() if data else RTN()), why + ("" if data else "; gptq with --data loses less")
    why = "ecgptq, since the file counts: no grid loses less at equal bytes than a uniform one, entropy coded"
    if data:
        return ECGPTQ(), why
    return ECGPTQ(inputs="none"), why + "; with --data it loses less"


def _counted(
    source: ModelSource, unit: Unit, also: Sequence[str], calibration: Calibration | None
) -> tuple[Size, float, float]:
    """What a layer costs, what the dense model costs, and what of that no layer can save."""
    outside = choose_extra(source, also)[0]
    layers = [layer for block in source.blocks for layer in block.layers] + outside
    if unit is Unit.PARAMS:
        own = sum(layer.shape.numel() for layer in layers)
        blocks = sum(count_parameters(source).blocks.values())
        extra = sum(layer.shape.numel() for layer in outside)
        return lambda record, _: kept(record.weight), blocks + extra, blocks + extra - own
    if calibration is None:
        raise DataError(
            "a budget of flops needs data: its first sequence says how often each layer is used"
        )
    counts = count(source, calibration.inputs[0])
    numel: dict[str, int] = {}
    for layer in layers:
        numel[layer.module] = numel.get(layer.module, 0) + layer.shape.numel()
    times = {path: counts.by_module[path].dense_macs / n for path, n in numel.items()}
    own_macs = sum(times[path] * n for path, n in numel.items())

    def multiplications(record: Record, layer: Layer) -> float:
        each = products(record.weight) + transform_products(record.transform)
        return each * times[layer.module]

    return multiplications, counts.dense_macs, counts.dense_macs - own_macs


def _plan_counted(
    table: OptionTable, chain: Chain, budget: Budget, whole: float, rest: float
) -> Plan:
    """A plan by numbers that are kept or multiplied, which no file can miss."""
    what = budget.unit.value.strip("x ")
    least, most = (float(f(table.cost, axis=1).sum()) for f in (np.min, np.max))
    target = budget.amount * whole - rest
    if least == most:
        raise BudgetError(
            f"{name_of(type(chain[-1]))} saves stored bytes, not {what}: give the budget as 4bit, 25% "
            "or 1.5GB"
        )
    if least > target:
        raise BudgetError(
            f"the budget {budget} cannot be reached; the smallest is about "
            f"{_up((least + rest) / whole)}x {what}"
        )
    return Plan(list(table.spread(target)), table=table, target=target)


def _unreachable(
    source: ModelSource, budget: Budget, least: float, rest: float, weights: int
) -> str:
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
