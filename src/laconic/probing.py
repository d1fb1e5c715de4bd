"""What every option of a chain costs and loses on every layer; `laconic.budgeting` spreads budgets by it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from laconic.allocate.sensitivity import PROBE
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.options import RunOptions
from laconic.calibrate.reports import relative_error
from laconic.calibrate.runner import run_layers
from laconic.calibrate.statistics import InputNorm, SecondMoment, Statistic
from laconic.calibrate.steps import BlockView
from laconic.errors import BudgetError
from laconic.method import LayerMethod
from laconic.models.layout import Layer
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.planning import Chain, OptionTable
from laconic.progress import SILENT, Progress
from laconic.tensors import CompressedTensor, Dense
from laconic.tensors.stored import Record, encode

SAMPLE_WEIGHTS = 1 << 17  # of a layer, on which options are measured: whole rows, evenly spread
HEADER_BYTES = 120  # of a tensor in a safetensors header, its name aside
MOST_OPTIONS = 256  # of a chain that are measured on every layer

Size = Callable[[Record, Layer], float]  # what a layer costs


def blob_bytes(record: Record, layer: Layer) -> float:
    """Bytes of a layer's blob, which its stored bits are counted of."""
    return len(encode(record))


def stored_bytes(record: Record, layer: Layer) -> float:
    """Bytes of a layer in a file, its place in the file's header included."""
    return len(encode(record)) + HEADER_BYTES


def resident_bytes(record: Record, layer: Layer) -> float:
    """Bytes of a layer in memory."""
    return record.resident_bytes


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

    def __init__(
        self, options: Sequence[Chain], size: Size = stored_bytes,
        sensitivity: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self.options, self.size = options, size
        self._sensitivity = sensitivity or {}
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
            weighed = self._importance(layer, weight.numel(), sample, stats)
            self.errors.append([error * weighed for _, error in measured])

    def _importance(self, layer: Layer, numel: int, sample: Tensor, stats: LayerStats) -> float:
        """What an error of all of a layer's energy counts: nats of the answers, where that is known."""
        if not self._sensitivity:
            return float(numel)
        known = self._sensitivity.get(layer.name)
        if known is None:  # outside of the blocks: as an average layer
            known = sum(self._sensitivity.values()) / len(self._sensitivity)
        probed = output_error(sample, PROBE.quantize(sample.float()), stats)
        return known / probed if probed > 0 else 0.0


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
    sensitivity: Mapping[str, float] | None = None,
) -> OptionTable:  # fmt: skip
    """Tries every option of a chain on some rows of every layer; keeps the sizes and errors.

    With `sensitivity`, as `measure_sensitivity` gives it, errors are nats by which the answers diverge.
    """
    chain = (chain,) if isinstance(chain, LayerMethod) else chain
    probe = OptionProbe(options_of(chain), size, sensitivity)
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
