"""Sums being collected for the layers of one or many blocks."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import Trace
from laconic.calibrate.statistics import Collected, Observation, Statistic, Task
from laconic.models.layout import Layer
from laconic.numerics.parallel import parallel_map


def layers_by_key(layers: Iterable[Layer]) -> dict[tuple[str, str, int], Layer]:
    """Layers by module, slot and position, as sights name them."""
    return {(la.module, la.slot, 0 if la.part is None else la.part.position): la for la in layers}


class Sums:
    """Takes traces, one sequence after the other.

    Sums that depend on inputs alone are kept once for layers that share an input.

    Args:
        statistics: to collect.
        layers: to collect them for.
    """

    def __init__(self, statistics: Sequence[Statistic], layers: Sequence[Layer]) -> None:
        self._statistics, self._layers = statistics, layers
        self.of_outputs = any("outputs" in statistic.needs for statistic in statistics)
        self._by_key = layers_by_key(layers)
        self._collected: dict[tuple[str, Statistic], Collected] = {}
        self._owner: dict[str, str] = {}  # layer -> the one whose input sums it shares
        self._lanes: dict[tuple[str, Statistic, int], list[Task]] = {}

    def add(self, trace: Trace, dense: Trace | None = None, *, gradients: bool = False) -> None:
        """Queues the observations of one sequence.

        Args:
            trace: what the layers multiplied.
            dense: the same of the dense model, if there is a reference.
            gradients: whether a loss was differentiated with respect to the outputs.
        """
        first: dict[int, str] = {}  # id of an input that is held by the trace -> layer
        for (path, sight), reference in zip(trace, _references(trace, dense)):
            gradient = sight.outputs.grad if gradients else None
            for position in sight.positions or (0,):
                layer = self._by_key.get((path, sight.slot, position))
                if layer is None:
                    continue
                owner = first.setdefault(id(sight.inputs), layer.name)
                owner = self._owner.setdefault(layer.name, owner)
                seen = Observation(
                    _positions(sight.inputs),
                    _positions(_own(layer, sight.outputs)) if self.of_outputs else None,
                    None if gradient is None else _positions(_own(layer, gradient)),
                    None if reference is None else _positions(reference),
                )
                self._queue(layer.name, owner, seen)

    def _queue(self, name: str, owner: str, seen: Observation) -> None:
        if len(seen.inputs) == 0:
            return
        for statistic in self._statistics:
            if statistic.of_inputs and owner != name:
                continue
            collected = self._collected.setdefault((name, statistic), Collected(statistic))
            for number, task in enumerate(collected.tasks(seen)):
                self._lanes.setdefault((name, statistic, number), []).append(task)

    def run(self) -> None:
        """Does what was queued: each lane in order, lanes side by side."""

        def follow(lane: list[Task]) -> None:
            for task in lane:
                task()

        parallel_map(follow, self._lanes.values())
        self._lanes.clear()

    def of_layers(self) -> dict[str, LayerStats]:
        """What was collected, by layer name."""
        stats = {}
        for layer in self._layers:
            owner = self._owner.get(layer.name, layer.name)
            found = {
                s: self._collected.get((owner if s.of_inputs else layer.name, s), Collected(s))
                for s in self._statistics
            }
            stats[layer.name] = LayerStats(layer, found)
        return stats


def _own(layer: Layer, outputs: Tensor) -> Tensor:
    """Those of the outputs that belong to the layer; fused projections give several at once."""
    part = layer.part
    if part is None or part.per_slice == 1:
        return outputs
    return outputs[..., part.first : part.last]


def _positions(values: Tensor) -> Tensor:
    """(n, width) float32."""
    return values.detach().reshape(-1, values.shape[-1]).float()


def _references(trace: Trace, dense: Trace | None) -> list[Tensor | None]:
    """For each sight of `trace` what the dense model saw there.

    Experts are sent other tokens in the dense model: a layer that saw other positions there counts as
    having seen its own inputs.
    """
    if dense is None:
        return [None] * len(trace)
    seen: dict[tuple[str, str, tuple[int, ...]], list[Tensor]] = {}
    for path, sight in dense:
        seen.setdefault((path, sight.slot, sight.positions), []).append(sight.inputs)
    found: list[Tensor | None] = []
    for path, sight in trace:
        there = seen.get((path, sight.slot, sight.positions), [])
        other = there.pop(0) if there else sight.inputs
        same = other.shape == sight.inputs.shape and not sight.positions
        found.append(other if same else sight.inputs)
    return found
