"""One block of a run: its layers go through the chain, and the sequences behind the block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.chain import Order, from_passes, in_order, stages, wanted
from laconic.calibrate.collect import Run, collect, gather
from laconic.calibrate.heldout import HeldOut
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.lockstep import Arrival, Lockstep, looking
from laconic.calibrate.options import LOCKSTEP, RunOptions
from laconic.calibrate.starved import feed
from laconic.calibrate.steps import BlockStep, BlockView, LayerStep, Step, Task
from laconic.calibrate.stream import SequentialStream, Stream
from laconic.calibrate.sums import Sums
from laconic.errors import UsageError
from laconic.models.layout import Layer

TOGETHER = 16  # sequences in lockstep that are summed at a time: they are in memory anyway
#: What sequences give to layers as they are now, for the stage of the chain with that number.
Collect = Callable[[int], dict[str, LayerStats]]


@dataclass
class Course:
    """What all blocks of a run have in common.

    Attributes:
        steps: the chain.
        options: see `RunOptions`.
        calibration: sequences, if there are any.
        gradients: by layer name, statistics of gradients.
        stream: sequences before the block that comes next.
        reference: the same in the dense model, where something asks for it.
    """

    steps: Sequence[Step]
    options: RunOptions
    calibration: Calibration | None
    gradients: Mapping[str, LayerStats] = field(default_factory=dict)
    stream: Stream | None = None
    reference: Stream | None = None

    @property
    def streams(self) -> list[Stream]:
        """Those that there are."""
        return [stream for stream in (self.stream, self.reference) if stream is not None]


class BlockPass:
    """Takes one block through a run.

    Args:
        course: the run.
        live: the block.
        dense: the same, never compressed; where there is a reference.
        number: of the block.
        last: nobody asks what lies behind it.
    """

    def __init__(
        self, course: Course, live: LiveBlock, dense: LiveBlock | None, number: int, last: bool
    ) -> None:
        self.course, self.live, self.dense, self.number, self.last = (
            course,
            live,
            dense,
            number,
            last,
        )
        self._known = {layer.name: LayerStats(layer) for layer in live.layers}
        self._stages = [(stage, from_passes(stage)) for stage in stages(course.steps)]

    def run(self) -> tuple[dict[str, LayerStats], HeldOut | None]:
        """Compresses the block and leaves the sequences behind it.

        Returns:
            What was known of each layer, by name; the error of layers, where sequences measure it.
        """
        order = self._order()
        if order is not None and self._fits(order):
            return self._known, self._in_lockstep(order.groups)
        apart = self.course.options.order == "layer"
        for layers in order.groups if order and apart else [self.live.layers]:
            self._compress(layers, partial(self._collect, layers))
        return self._known, self._advance()

    def _order(self) -> Order | None:
        """In which order layers compute, where that may matter; None otherwise."""
        stream, options = self.course.stream, self.course.options
        whole = any(isinstance(step, BlockStep) for step in self.course.steps)
        if options.order == "block" or stream is None or whole or not wanted(self.course.steps):
            return None
        return in_order(self.live, self._runs()[0])

    def _fits(self, order: Order) -> bool:
        """Whether sequences can go through the block in lockstep."""
        stream = self.course.stream
        if not isinstance(stream, SequentialStream) or self.course.reference is not None:
            return False
        width = max((layer.shape[1] for layer in self.live.layers), default=0)
        return order.straight and stream.held_bytes(width) <= LOCKSTEP

    def _in_lockstep(self, groups: Sequence[Sequence[Layer]]) -> HeldOut | None:
        """Every sequence passes the block once, and stops before each group of layers."""
        stream, calibration = self.course.stream, self.course.calibration
        assert isinstance(stream, SequentialStream) and calibration is not None
        heldout = HeldOut(self.live, calibration.held_out) if calibration.held_out else None

        def decide(layers: Sequence[Layer], arrived: Mapping[int, Arrival]) -> None:
            self._compress(layers, partial(self._gather, layers, arrived))
            if heldout is not None:
                with looking(self.live, layers, arrived) as look:
                    heldout.measure(layers, look, arrived)

        with torch.inference_mode():
            walk = Lockstep(self.live, groups, decide, finish=not self.last)
            stream.walk(self.number, self.live.module, walk.map, last=self.last)
        return heldout

    def _compress(self, layers: Sequence[Layer], collected: Collect) -> None:
        """Takes layers through the chain."""
        for number, (stage, wants) in enumerate(self._stages):
            if wants and self.course.stream is not None:
                stats = collected(number)
            else:
                stats = {layer.name: LayerStats(layer) for layer in layers}
            for name, found in stats.items():
                if name in self.course.gradients:
                    of_gradients = self.course.gradients[name].collected
                    found.collected = {**found.collected, **of_gradients}
            for step in stage:
                apply(self.course, step, self.live, layers, stats, self.number)
            for name, found in stats.items():
                found.notes[:0] = [n for n in self._known[name].notes if n not in found.notes]
                self._known[name] = found

    def _gather(
        self, layers: Sequence[Layer], arrived: Mapping[int, Arrival], stage: int
    ) -> dict[str, LayerStats]:
        """What sequences that wait before `layers` are about to give them."""
        assert self.course.calibration is not None
        sums = Sums(self._stages[stage][1], layers)
        there = [s for s in self.course.calibration.fitted if s in arrived]
        with looking(self.live, layers, arrived, outputs=sums.of_outputs) as look:
            batch = self.course.options.batch or TOGETHER
            stats = gather(sums, lambda s: (look(s), None), there, batch)
        feed(stats, self.course.options.device)
        return stats

    def _collect(self, layers: Sequence[Layer], stage: int) -> dict[str, LayerStats]:
        """What sequences give to `layers` on their way through the block."""
        options, calibration = self.course.options, self.course.calibration
        assert calibration is not None
        wants = self._stages[stage][1]
        library = options.library if stage == 0 else None  # later stages see other inputs
        name = self.live.block.name
        stats = None if library is None else library.get(name, layers, wants, options.device)
        if stats is None:
            run, reference = self._runs()
            pairs = any("reference" in w.needs for w in wants)
            stats = collect(
                self.live, layers, wants, run, calibration.fitted,
                reference=reference if pairs else None, batch=options.batch,
            )  # fmt: skip
            if library is not None:
                library.put(name, stats)
        feed(stats, options.device)
        return stats

    def _runs(self) -> tuple[Run, tuple[LiveBlock, Run] | None]:
        """What takes a sequence through the block: as it is, and as the dense model would."""
        stream, reference, dense = self.course.stream, self.course.reference, self.dense
        live, number = self.live, self.number
        assert stream is not None
        if reference is None or dense is None:
            return lambda sequence: stream.run(number, live.module, sequence), None

        def dense_run(sequence: int) -> Any:
            return reference.run(number, dense.module, sequence)

        if self.course.options.inputs == "dense":
            return lambda sequence: reference.run(number, live.module, sequence), (dense, dense_run)
        return lambda sequence: stream.run(number, live.module, sequence), (dense, dense_run)

    def _advance(self) -> HeldOut | None:
        """Takes the sequences behind the block; measures the layers on those not fitted to."""
        stream, calibration = self.course.stream, self.course.calibration
        if stream is None or calibration is None:
            return None
        with torch.inference_mode():
            if self.course.reference is not None and self.dense is not None:
                self.course.reference.advance(self.number, self.dense.module, last=self.last)
            if not calibration.held_out:
                stream.advance(self.number, self.live.module, last=self.last)
                return None
            heldout = HeldOut(self.live, calibration.held_out)
            with heldout.watching() as spectator:
                stream.advance(self.number, self.live.module, spectator, last=self.last)
        return heldout


def apply(
    course: Course, step: Step, live: LiveBlock, layers: Sequence[Layer],
    stats: dict[str, LayerStats], number: int,
) -> None:  # fmt: skip
    """Makes `layers` of a block what `step` makes of them."""
    if isinstance(step, LayerStep):
        tasks = [Task(la, live.weight(la), live.record(la), stats[la.name]) for la in layers]
        for task, (record, notes) in zip(tasks, course.options.farm.map(step, tasks)):
            stats[task.layer.name].notes[:] = notes
            live.install(task.layer, record)
        live.decode()
    elif isinstance(step, BlockStep):
        sequences = () if course.calibration is None else course.calibration.fitted
        step.revise_block(
            BlockView(live, stats, number, course.stream, course.reference, sequences)
        )
    else:
        raise UsageError(f"{type(step).__name__} sees neither layers nor blocks")
