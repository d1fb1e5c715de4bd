"""What every option of a chain costs and loses on every layer; `laconic.budgeting` spreads budgets by it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

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
from laconic.numerics.energies import row_errors
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
    follows_dense = False

    def __init__(
        self, options: Sequence[Chain], size: Size = stored_bytes,
        sensitivity: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.options, self.size = options, size
        self._sensitivity = sensitivity or {}
        self.names: list[str] = []
        self.costs: list[list[float]] = []
        self._errors: list[list[float]] = []  # shares of what each layer puts out
        self._importance: list[float | None] = []  # what all of that counts, where it is known
        self._numel: list[int] = []

    @property
    def wants(self) -> tuple[Statistic, ...]:
        """What any option wants."""
        return tuple(dict.fromkeys(s for chain in self.options for m in chain for s in m.wants))

    def revise_block(self, view: BlockView) -> None:
        """Measures every layer; sizes and errors are of evenly spread rows."""
        for layer in view.live.layers:
            weight, stats = view.live.weight(layer), view.stats[layer.name]
            by_rows = all(method.by_rows for chain in self.options for method in chain)
            step = _step(weight) if by_rows else 1
            sample, scale = (
                weight[::step].contiguous(),
                weight.numel() / max(1, weight[::step].numel()),
            )
            rows = self._sensitivity.get(layer.name)
            rows = rows[::step] if rows is not None and stats.count(SecondMoment()) else None
            measured = parallel_map(
                lambda chain, w=sample, s=stats, r=rows: _try(chain, w, s, self.size, r),  # type: ignore[misc]
                self.options,
            )
            self.names.append(layer.name)
            self.costs.append([scale * cost for cost, _ in measured])
            self._errors.append([error for _, error in measured])
            self._numel.append(weight.numel())
            whole = None if rows is None else scale * _energies(sample, sample, stats, rows)[1]
            self._importance.append(whole)

    @property
    def weights(self) -> int:
        """How many were seen."""
        return sum(self._numel)

    def errors(self) -> list[list[float]]:
        """What each option loses on each layer: the share of the layer's outputs, times its weights."""
        return [[n * e for e in row] for n, row in zip(self._numel, self._errors)]

    def importance(self) -> list[float] | None:
        """What a layer's share adds to the loss for each weight; that of an average one where unknown.

        None where nothing is known.
        """
        known = [(i, n) for i, n in zip(self._importance, self._numel) if i is not None]
        if not known:
            return None
        each = sum(i for i, _ in known) / max(1, sum(n for _, n in known))
        return [each if i is None else i / n for i, n in zip(self._importance, self._numel)]


def _try(
    chain: Chain, weight: Tensor, stats: LayerStats, size: Size, rows: Tensor | None
) -> tuple[float, float]:
    """What some rows of a layer cost and lose, as the chain makes them."""
    record, seen = Record(Dense(weight)), LayerStats(stats.layer, stats.collected)
    for method in chain:
        before = record.transform
        record = method.revise(weight, record, seen)
        if record.transform is not None and record.transform is not before:
            seen = stats.behind(record.transform)
    folded = weight if record.transform is None else record.transform.fold(weight)
    return size(record, stats.layer), output_error(folded, record.weight, seen, rows)


def output_error(
    weight: Tensor, value: CompressedTensor, stats: LayerStats, rows: Tensor | None = None
) -> float:
    """`tr(R E H E^T) / tr(R W H W^T)` with E = W - W'; H is diagonal where only norms are known.

    Of the weights alone where nothing is known of the inputs.

    Args:
        weight: W (out, ...).
        value: W'.
        stats: of the inputs.
        rows: (out,), the diagonal of R: what the error of each output counts; all alike by default.
    """
    if not _known(stats):
        return relative_error(weight, value)
    lost, whole = _energies(weight, value.dense(torch.float32), stats, rows)
    return max(0.0, lost) / max(whole, torch.finfo(torch.float64).tiny)


def _known(stats: LayerStats) -> list[Statistic]:
    return [s for s in (SecondMoment(), InputNorm()) if stats.count(s)]


def _energies(
    weight: Tensor, value: Tensor, stats: LayerStats, rows: Tensor | None
) -> tuple[float, float]:
    """`tr(R E H E^T)` and `tr(R W H W^T)`."""
    known = _known(stats)[0]
    dense = weight.flatten(1).double()
    parts = dense - value.flatten(1).double(), dense
    if isinstance(known, SecondMoment):
        moment = stats.mean(known)
        each = [row_errors(part, moment) for part in parts]
    else:
        squares = stats.mean(known, "square")
        each = [part.square() @ squares for part in parts]
    weighed = [e if rows is None else e * rows.to(e) for e in each]
    return weighed[0].sum().item(), weighed[1].sum().item()


def measure_options(
    source: ModelSource, chain: Chain | LayerMethod,
    *, calibration: Calibration | None = None, also: Sequence[str] = (),
    options: RunOptions | None = None, progress: Progress = SILENT, size: Size = stored_bytes,
    sensitivity: Mapping[str, Tensor] | None = None,
) -> OptionTable:  # fmt: skip
    """Tries every option of a chain on some rows of every layer; keeps the sizes and errors.

    With `sensitivity`, as `measure_sensitivity` gives it, what errors add to the loss is known.
    """
    chain = (chain,) if isinstance(chain, LayerMethod) else chain
    probe = OptionProbe(options_of(chain), size, sensitivity)
    run_layers(
        source, NoSink(), [probe], calibration=calibration if probe.wants else None, also=also,
        options=options, progress=progress, what="measuring options",
    )  # fmt: skip
    importance = probe.importance()
    return OptionTable(
        probe.names, probe.options, np.array(probe.costs), np.array(probe.errors()), probe.weights,
        None if importance is None else np.array(importance),
    )  # fmt: skip


def _step(weight: Tensor) -> int:
    """Every so many-th row of `weight` make about `SAMPLE_WEIGHTS` weights."""
    return min(weight.shape[0], max(1, weight.numel() // SAMPLE_WEIGHTS)) or 1
