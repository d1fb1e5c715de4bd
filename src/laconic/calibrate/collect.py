"""Collects what layers see: sequences through a live block, sums for each layer that was watched.

    stream --sequences--> block --sights--> observations --tasks--> sums --> LayerStats

Layers with one input (query, key and value; gate and up) share the sums that depend on it alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.live import LiveBlock, Trace
from laconic.calibrate.statistics import (
    Collected,
    Observation,
    SecondMoment,
    Statistic,
    Task,
    symmetric,
)
from laconic.errors import DataError
from laconic.models.layout import Layer
from laconic.numerics.parallel import parallel_map
from laconic.tensors import InputTransform


@dataclass
class LayerStats:
    """What is known of a layer from data; methods read it, and note here what they fell back on.

    Attributes:
        layer: which.
        collected: sums, by statistic.
        notes: for the report: fall-backs, odd shapes, damping that had to be raised.
    """

    layer: Layer
    collected: Mapping[Statistic, Collected] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, statistic: Statistic) -> dict[str, Tensor]:
        """The sums of `statistic`; raises `DataError` if it was not collected."""
        found = self.collected.get(statistic)
        if found is None or found.sums is None:
            raise DataError(
                f"{self.layer.name}: there is no {statistic.name}; give calibration data that reaches "
                "the layer, or statistics that hold it"
            )
        return found.sums

    def count(self, statistic: Statistic) -> int:
        """Positions that `statistic` was summed over."""
        return self.collected[statistic].count if statistic in self.collected else 0

    def mean(self, statistic: Statistic, name: str = "moment") -> Tensor:
        """A moment over its positions, fp64, whole: `mean(SecondMoment())` is `E[x x^T]` (in, in)."""
        moment = self[statistic][name]
        whole = symmetric(moment) if moment.ndim == 2 and name != "cross" else moment
        return whole / max(1, self.count(statistic))

    def behind(self, transform: InputTransform) -> "LayerStats":
        """What is known of the transformed inputs: their second moment, where it was collected."""
        found = self.collected.get(SecondMoment())
        kept: dict[Statistic, Collected] = {}
        if found is not None and found.sums is not None:
            moment = transform.moment(symmetric(found.sums["moment"]))
            kept[SecondMoment()] = Collected(SecondMoment(), found.count, {"moment": moment})
        return LayerStats(self.layer, kept, self.notes)

    def note(self, text: str) -> None:
        """Has the report say something of this layer, once."""
        if text not in self.notes:
            self.notes.append(text)


Run = Callable[[int], Any]  # takes a sequence through a block


def collect(
    live: LiveBlock, layers: Sequence[Layer], wants: Iterable[Statistic], run: Run,
    sequences: Sequence[int], *, reference: tuple[LiveBlock, Run] | None = None, batch: int = 0,
) -> dict[str, LayerStats]:  # fmt: skip
    """What `layers` of a block see of `sequences`.

    Args:
        live: the block.
        layers: to watch.
        wants: statistics.
        run: takes a sequence through the block.
        sequences: their numbers.
        reference: the dense block and what takes a sequence through it, for `CrossMoment`.
        batch: sequences in memory at a time; one for each thread by default. No result depends on it.

    Returns:
        By layer name. A layer that no sequence reached has empty sums.
    """
    statistics = list(dict.fromkeys(wants))
    sums = _Sums(statistics, layers)
    size = batch or torch.get_num_threads()
    if not statistics:
        return {layer.name: LayerStats(layer) for layer in layers}
    with torch.inference_mode(), ExitStack() as stack:
        watch = stack.enter_context(live.watched(layers))
        other = watch
        if reference is not None and reference[0] is not live:
            other = stack.enter_context(reference[0].watched(layers))

        def traced(sequence: int) -> tuple[Trace, Trace | None]:
            with watch.trace() as trace:
                run(sequence)
            if reference is None:
                return trace, None
            with other.trace() as dense:
                reference[1](sequence)
            return trace, dense

        for start in range(0, len(sequences), size):
            for trace, dense in parallel_map(traced, sequences[start : start + size]):
                sums.add(trace, dense)
            sums.run()
    return sums.of_layers()


def layers_by_key(layers: Iterable[Layer]) -> dict[tuple[str, str, int], Layer]:
    """Layers by module, slot and position, as sights name them."""
    return {(la.module, la.slot, 0 if la.part is None else la.part.position): la for la in layers}


class _Sums:
    """Sums being collected; those of inputs alone are kept once for layers that share an input."""

    def __init__(self, statistics: Sequence[Statistic], layers: Sequence[Layer]) -> None:
        self._statistics, self._layers = statistics, layers
        self._by_key = layers_by_key(layers)
        self._collected: dict[tuple[str, Statistic], Collected] = {}
        self._owner: dict[str, str] = {}  # layer -> the one whose input sums it shares
        self._lanes: dict[tuple[str, Statistic, int], list[Task]] = {}

    def add(self, trace: Trace, dense: Trace | None) -> None:
        """Queues the observations of one sequence."""
        first: dict[int, str] = {}  # id of an input that is held by the trace -> layer
        references = _references(trace, dense)
        for (path, sight), reference in zip(trace, references):
            names = [
                self._by_key[path, sight.slot, position].name
                for position in sight.positions or (0,)
                if (path, sight.slot, position) in self._by_key
            ]
            for name in names:
                owner = self._owner.setdefault(name, first.setdefault(id(sight.inputs), name))
                self._queue(
                    name, owner, sight.inputs, self._outputs(name, sight.outputs), reference
                )

    def _outputs(self, name: str, outputs: Tensor) -> Tensor:
        """Those of the outputs that belong to the layer; fused projections give several at once."""
        part = next(la.part for la in self._layers if la.name == name)
        if part is None or part.per_slice == 1:
            return outputs
        return outputs[..., part.first : part.last]

    def _queue(
        self, name: str, owner: str, inputs: Tensor, outputs: Tensor, reference: Tensor | None
    ) -> None:
        seen = Observation(
            inputs.reshape(-1, inputs.shape[-1]).float(),
            outputs.reshape(-1, outputs.shape[-1]).float(),
            reference=None
            if reference is None
            else reference.reshape(-1, inputs.shape[-1]).float(),
        )
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
        stats = {}
        for layer in self._layers:
            owner = self._owner.get(layer.name, layer.name)
            found = {
                s: self._collected.get((owner if s.of_inputs else layer.name, s), Collected(s))
                for s in self._statistics
            }
            stats[layer.name] = LayerStats(layer, found)
        return stats


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
