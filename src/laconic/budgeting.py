"""How a budget becomes a plan: what every option of a chain costs and loses on every layer."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from laconic.allocate.budget import Budget, Unit
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.options import RunOptions
from laconic.calibrate.reports import relative_error
from laconic.calibrate.runner import run_layers
from laconic.calibrate.statistics import InputNorm, SecondMoment, Statistic
from laconic.calibrate.steps import BlockView
from laconic.errors import BudgetError, DataError, UsageError
from laconic.measure.flops import count, count_parameters
from laconic.measure.values import kept, products, transform_products
from laconic.method import LayerMethod
from laconic.models.layout import Layer
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.planning import Chain, OptionTable, Plan
from laconic.progress import SILENT, Progress
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.registry import name_of
from laconic.tensors import CompressedTensor, Dense
from laconic.tensors.stored import Record, encode

SAMPLE_WEIGHTS = 1 << 17  # of a layer, on which options are measured: whole rows, evenly spread
HEADER_BYTES = 120  # of a tensor in a safetensors header, its name aside
MOST_OPTIONS = 256  # of a chain that are measured on every layer
STORED = (Unit.BITS, Unit.SHARE, Unit.BYTES)

Size = Callable[[Record, Layer], float]  # what a layer costs


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
    table = measure_options(
        source, chain, calibration=calibration, also=also, options=options, progress=progress,
        size=size,
    )  # fmt: skip
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
    of_layers = budget.unit is Unit.BITS
    return Plan(list(table.spread(target)), limit, of_layers, budget.resident, table, target)


def blob_bytes(record: Record, layer: Layer) -> float:
    """Bytes of a layer's blob, which its stored bits are counted of."""
    return len(encode(record))


def stored_bytes(record: Record, layer: Layer) -> float:
    """Bytes of a layer in a file, its place in the file's header included."""
    return len(encode(record)) + HEADER_BYTES


def resident_bytes(record: Record, layer: Layer) -> float:
    """Bytes of a layer in memory."""
    moved = record.transform.resident_bytes if record.transform is not None else 0
    return record.weight.resident_bytes + moved


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

    def __init__(self, options: Sequence[Chain], size: Size = stored_bytes) -> None:
        self.options, self.size = options, size
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
            by_rows = all(method.by_rows for chain in self.options for method in chain)
            sample = _some_rows(weight) if by_rows else weight
            scale = weight.numel() / max(1, sample.numel())
            measured = parallel_map(
                lambda chain, w=sample, s=stats: _try(chain, w, s, self.size),  # type: ignore[misc]
                self.options,
            )
            self.names.append(layer.name)
            self.weights += weight.numel()
            self.costs.append([scale * cost for cost, _ in measured])
            self.errors.append([error * weight.numel() for _, error in measured])


def _try(chain: Chain, weight: Tensor, stats: LayerStats, size: Size) -> tuple[float, float]:
    """What some rows of a layer cost and lose, as the chain makes them."""
    record, seen = Record(Dense(weight)), LayerStats(stats.layer, stats.collected)
    for method in chain:
        before = record.transform
        record = method.revise(weight, record, seen)
        if record.transform is not None and record.transform is not before:
            seen = stats.behind(record.transform)
    folded = weight if record.transform is None else record.transform.fold(weight)
    return size(record, stats.layer), output_error(folded, record.weight, seen)


def output_error(weight: Tensor, value: CompressedTensor, stats: LayerStats) -> float:
    """`tr(E H E^T) / tr(W H W^T)` with E = W - W'; H is diagonal where only norms are known.

    Of the weights alone where nothing is known of the inputs.
    """
    known = [s for s in (SecondMoment(), InputNorm()) if stats.count(s)]
    if not known:
        return relative_error(weight, value)
    dense = weight.flatten(1).double()
    lost = dense - value.dense(torch.float32).flatten(1).double()
    if isinstance(known[0], SecondMoment):
        moment = stats.mean(known[0])
        energy = [((part @ moment) * part).sum().item() for part in (lost, dense)]
    else:
        squares = stats.mean(known[0], "square")
        energy = [(part.square() @ squares).sum().item() for part in (lost, dense)]
    return max(0.0, energy[0]) / max(energy[1], torch.finfo(torch.float64).tiny)


def measure_options(
    source: ModelSource, chain: Chain | LayerMethod,
    *, calibration: Calibration | None = None, also: Sequence[str] = (),
    options: RunOptions | None = None, progress: Progress = SILENT, size: Size = stored_bytes,
) -> OptionTable:  # fmt: skip
    """Tries every option of a chain on some rows of every layer; keeps the sizes and errors."""
    chain = (chain,) if isinstance(chain, LayerMethod) else chain
    probe = OptionProbe(options_of(chain), size)
    run_layers(
        source, NoSink(), [probe], calibration=calibration if probe.wants else None, also=also,
        options=options, progress=progress, what="measuring options",
    )  # fmt: skip
    table = OptionTable(
        probe.names, probe.options, np.array(probe.costs), np.array(probe.errors), probe.weights
    )
    return table.refined()


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
