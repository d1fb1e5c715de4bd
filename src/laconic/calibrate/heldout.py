"""The error of layers on inputs that nothing was fitted to, measured while sequences pass by."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.collect import gather
from laconic.calibrate.live import LiveBlock, Trace, Watch
from laconic.calibrate.statistics import SecondMoment
from laconic.calibrate.stream import Spectator
from laconic.calibrate.sums import Sums, layers_by_key
from laconic.models.layout import Layer
from laconic.numerics.energies import row_errors
from laconic.numerics.parallel import parallel_map

MOMENTS = 1 << 28  # bytes of second moments by which layers may be measured: one product, not many
ROWS = 1024  # of a layer, evenly spread, on which its error is measured: bounds the memory
SUMS = torch.float64


class HeldOut:
    """Sums `||(W - W') x||^2` and `||W x||^2` of every layer of a compressed block.

    Args:
        live: the block.
        sequences: numbers of those to measure on.
    """

    def __init__(self, live: LiveBlock, sequences: Sequence[int]) -> None:
        self._live, self.sequences = live, frozenset(sequences)
        self._by_key = layers_by_key(live.layers)
        self._lost: dict[int, dict[str, Tensor]] = {}
        self._pairs: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator["Spectator"]:
        """For sequences that pass through the whole block, compressed, while inside."""
        with self._live.watched(self._live.layers, outputs=False) as watch, self._of(None):
            yield _Visitor(self, watch)

    def measure(
        self, layers: Sequence[Layer], look: Callable[[int], Trace], there: Collection[int]
    ) -> None:
        """Measures some of the layers, which are compressed now, on what each sequence brings them.

        Args:
            layers: to measure.
            look: what they multiply of a sequence.
            there: numbers of those that reach them.
        """
        numbers = sorted(self.sequences.intersection(there))
        with self._of(layers):
            if sum(8 * la.shape[1:].numel() ** 2 for la in layers) > MOMENTS:
                parallel_map(lambda s: self.add(s, look(s)), numbers)
                return
            sums = Sums([SecondMoment()], layers)
            for name, found in gather(sums, lambda s: (look(s), None), numbers).items():
                if found.count(SecondMoment()):
                    parts, moment = self._pairs[name], found.mean(SecondMoment())
                    energies = row_errors(parts, moment).view(2, -1).sum(dim=1)
                    self._lost.setdefault(numbers[0], {})[name] = energies.clamp(min=0)

    def add(self, sequence: int, trace: Trace) -> None:
        """Measures on one sequence; call it within `watching` or `measure`."""
        self._lost.setdefault(sequence, {}).update(self._measure(trace))

    @contextmanager
    def _of(self, layers: Sequence[Layer] | None) -> Iterator[None]:
        chosen = self._live.layers if layers is None else layers
        self._pairs = {layer.name: _difference(self._live, layer) for layer in chosen}
        yield
        self._pairs = {}

    def error(self, layer: Layer) -> float | None:
        """Lost over all energy; None for a layer that no sequence reached."""
        rows = [
            self._lost[s][layer.name] for s in sorted(self._lost) if layer.name in self._lost[s]
        ]
        if not rows:
            return None
        lost, whole = torch.stack(rows).sum(dim=0).tolist()
        return float(lost / whole) if whole > 0 else 0.0

    def _measure(self, trace: Trace) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for path, sight in trace:
            x = sight.inputs.reshape(-1, sight.inputs.shape[-1]).float()
            for position in sight.positions or (0,):
                name = self._by_key[path, sight.slot, position].name
                both = (x @ self._pairs[name].T).square_().sum(dim=0).to(SUMS)
                pair = both.view(2, -1).sum(dim=1)
                sums[name] = sums[name] + pair if name in sums else pair
        return sums


class _Visitor:
    """Looks on while sequences pass."""

    def __init__(self, heldout: HeldOut, watch: Watch) -> None:
        self._heldout, self._watch = heldout, watch
        self.sequences = heldout.sequences

    def visit(self, sequence: int, forward: Callable[[], Any]) -> Any:
        """Runs a sequence, and measures on it."""
        with self._watch.trace() as trace:
            out = forward()
        self._heldout.add(sequence, trace)
        return out


def _difference(live: LiveBlock, layer: Layer) -> Tensor:
    """`W - W'` over `W` (2 rows, in), fp32, as they stand behind the layer's input transform."""
    record, weight = live.record(layer), live.weight(layer).float()
    if record.transform is not None and layer.part is None:
        weight = record.transform.fold(weight)
    step = -(-weight.shape[0] // ROWS)
    weight = weight.flatten(1)[::step]
    return torch.cat([weight - record.weight.dense(torch.float32).flatten(1)[::step], weight])
