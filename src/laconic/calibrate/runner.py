"""The runner: takes a model through a chain of methods, block by block, and hands the results on.

    source --one block--> live block <--sums-- sequences before the block
                              |  steps of the chain, one after the other
                              v
                      slots of modules --> sink;  sequences --> behind the block

One block, its sums and the sequences between two blocks are in memory at a time. Tensors that no
method touches pass through; those of embeddings and heads are stored without loss as byte planes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.chain import in_order, stages, wanted
from laconic.calibrate.collect import Run, collect
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.gradients import collect_gradients
from laconic.calibrate.heldout import HeldOut
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.library import StatisticsLibrary
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.reports import LayerReport, from_json, layer_report
from laconic.calibrate.starved import feed
from laconic.calibrate.steps import BlockStep, BlockView, Farm, LayerStep, LocalFarm, Step, Task
from laconic.calibrate.stream import Stream, open_stream
from laconic.errors import DataError, UsageError
from laconic.models.layout import Block, Layer
from laconic.models.sink import Sink
from laconic.models.source import ModelSource
from laconic.numerics.allocator import give_back_memory
from laconic.progress import SILENT, Progress
from laconic.tensors import Dense
from laconic.tensors.stored import Record


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it; none of these changes what a given method does with given statistics.

    Attributes:
        inputs: statistics of inputs that come through the blocks compressed before (`compressed`), or
            of the dense model's (`dense`).
        order: a block's layers all at once, or `layer`: those with one input at a time, each seeing
            what the ones before it have become.
        device: where to compute.
        batch: sequences in memory at a time; one for each thread by default.
        farm: where layers are compressed.
        library: statistics of dense inputs that are read instead of collected, and kept for the next
            run where they are not there yet; only with `inputs` `dense` and `order` `block`.
    """

    inputs: Literal["compressed", "dense"] = "compressed"
    order: Literal["block", "layer"] = "block"
    device: str = "cpu"
    batch: int = 0
    farm: Farm = field(default_factory=LocalFarm)
    library: StatisticsLibrary | None = None

    def __post_init__(self) -> None:
        if self.library is not None and (self.inputs != "dense" or self.order != "block"):
            raise UsageError(
                "statistics that are kept are of the dense model's inputs, all layers of a block at "
                "once: give inputs dense (--inputs dense) and order block"
            )


def run_layers(
    source: ModelSource, sink: Sink, steps: Sequence[Step],
    *, calibration: Calibration | None = None, also: Sequence[str] = (),
    options: RunOptions | None = None, progress: Progress = SILENT, what: str = "compressing blocks",
) -> list[LayerReport]:  # fmt: skip
    """Takes every layer of the blocks of `source`, and those that `also` names, through `steps`.

    Args:
        source: where the model comes from.
        sink: where it goes to; one that remembers finished blocks makes the run go on behind them.
        steps: a chain of methods.
        calibration: sequences to collect statistics on; needed where a step wants any.
        also: `"embeddings"`, `"rest"` (other layers outside the blocks, such as the head) or paths
            of modules.
        options: see `RunOptions`.
        progress: follows the blocks.
        what: what it is told that is being done.

    Returns:
        One report for each layer, in order.

    Raises:
        BadWeights: a weight holds NaN or infinity; the message names the tensor.
        DataError: a step wants statistics and there is no data.
        UsageError: `also` names nothing in the model.
    """
    give_back_memory()
    runner = _Runner(source, sink, steps, calibration, also, options or RunOptions())
    return runner.run(progress, what)


class _Runner:
    def __init__(
        self, source: ModelSource, sink: Sink, steps: Sequence[Step],
        calibration: Calibration | None, also: Sequence[str], options: RunOptions,
    ) -> None:  # fmt: skip
        self.source, self.sink, self.steps, self.options = source, sink, steps, options
        self.calibration = calibration
        self.extra, self.kept = choose_extra(source, also)
        wants = wanted(steps)
        if wants and calibration is None:
            raise DataError(
                f"the method needs calibration data ({wants[0].name} of layer inputs): give --data"
            )
        self.stages = stages(steps)
        self.gradients: dict[str, LayerStats] = {}
        self.follows_dense = options.inputs == "dense" or any("reference" in w.needs for w in wants)
        self.stream: Stream | None = None
        self.reference: Stream | None = None

    def run(self, progress: Progress, what: str) -> list[LayerReport]:
        of_gradients = [w for w in wanted(self.steps) if "gradients" in w.needs]
        if self.calibration is not None and of_gradients:
            self.gradients = collect_gradients(
                self.source, self.calibration, of_gradients, device=self.options.device,
                progress=progress,
            )  # fmt: skip
        if self.calibration is not None:
            self._open(int(self.sink.resumed().get("blocks", 0)))
        saved = self.sink.resumed()
        reports = [from_json(row) for row in saved.get("reports", [])]
        first = int(saved.get("blocks", 0))
        done = {name for b in self.source.blocks[:first] for name in self._names(b)}
        numbered = list(enumerate(self.source.blocks))[first:]
        for number, block in progress.track(numbered, what, total=len(numbered)):
            reports += self._block(number, block)
            done.update(self._names(block))
            self._checkpoint(number + 1, reports)
        reports += self._extras()
        done.update(n for layer in self.extra for n in self.source.tensors_below(layer.module))
        for name in [n for n in self.source.sizes() if n not in done]:
            tensor = self.source.read([name])[name]
            if name in self.kept:
                layer = self.kept[name]
                self.sink.keep_module(layer.module, {layer.slot: Record(Dense(tensor))})
            else:
                self.sink.put_tensor(name, tensor)
        return reports

    def _names(self, block: Block) -> list[str]:
        return self.source.tensors_below(block.name)

    def _open(self, first: int) -> None:
        assert self.calibration is not None
        folder = self.sink.states_folder()
        options = self.options
        self.stream = open_stream(
            self.source, self.calibration.inputs, device=options.device, folder=folder
        )
        if self.follows_dense:
            self.reference = self.stream.fork()
        streams = [stream for stream in (self.stream, self.reference) if stream is not None]
        if first and not all(stream.resume(first) for stream in streams):
            self.sink.restart()

    def _checkpoint(self, blocks: int, reports: list[LayerReport]) -> None:
        self.sink.checkpoint({"blocks": blocks, "reports": [asdict(r) for r in reports]})
        for stream in (self.stream, self.reference):
            if stream is not None:
                stream.forget(blocks - 1)

    def _block(self, number: int, block: Block) -> list[LayerReport]:
        live = LiveBlock(self.source, block, self.options.device)
        dense = LiveBlock(self.source, block, self.options.device) if self.reference else None
        stats = self._compress(live, dense, number)
        heldout = self._advance(live, dense, number)
        reports = self._hand_over(live, stats, heldout)
        for name in live.untouched:
            self.sink.put_tensor(name, live.tensors[name])
        return reports

    def _compress(
        self, live: LiveBlock, dense: LiveBlock | None, number: int
    ) -> dict[str, LayerStats]:
        """Takes the layers of a block through the chain; returns what was known of each."""
        known = {layer.name: LayerStats(layer) for layer in live.layers}
        for layers in self._groups(live, number):
            for stage in self.stages:
                stats = self._statistics(live, dense, layers, stage, number)
                for step in stage:
                    self._apply(step, live, layers, stats, number)
                for name, found in stats.items():
                    found.notes[:0] = [n for n in known[name].notes if n not in found.notes]
                    known[name] = found
        return known

    def _apply(
        self, step: Step, live: LiveBlock, layers: Sequence[Layer],
        stats: dict[str, LayerStats], number: int,
    ) -> None:  # fmt: skip
        if isinstance(step, LayerStep):
            tasks = [Task(la, live.weight(la), live.record(la), stats[la.name]) for la in layers]
            for task, (record, notes) in zip(tasks, self.options.farm.map(step, tasks)):
                stats[task.layer.name].notes[:] = notes
                live.install(task.layer, record)
        elif isinstance(step, BlockStep):
            sequences = () if self.calibration is None else self.calibration.fitted
            step.revise_block(
                BlockView(live, stats, number, self.stream, self.reference, sequences)
            )
        else:
            raise UsageError(f"{type(step).__name__} sees neither layers nor blocks")

    def _groups(self, live: LiveBlock, number: int) -> list[Sequence[Layer]]:
        """The layers that are compressed together, in order of computation."""
        blockwise = any(isinstance(step, BlockStep) for step in self.steps)
        if self.options.order == "block" or self.stream is None or blockwise:
            return [live.layers]
        return in_order(live, self._runs(live, None, number)[0])

    def _runs(
        self, live: LiveBlock, dense: LiveBlock | None, number: int
    ) -> tuple[Run, tuple[LiveBlock, Run] | None]:
        """What takes a sequence through the block: as it is, and as the dense model would."""
        stream, reference = self.stream, self.reference
        assert stream is not None
        if reference is None or dense is None:
            return lambda sequence: stream.run(number, live.module, sequence), None

        def dense_run(sequence: int) -> Any:
            return reference.run(number, dense.module, sequence)

        if self.options.inputs == "dense":
            return lambda sequence: reference.run(number, live.module, sequence), (dense, dense_run)
        return lambda sequence: stream.run(number, live.module, sequence), (dense, dense_run)

    def _statistics(
        self, live: LiveBlock, dense: LiveBlock | None, layers: Sequence[Layer],
        stage: Sequence[Step], number: int,
    ) -> dict[str, LayerStats]:  # fmt: skip
        wants = [w for w in wanted(stage) if "gradients" not in w.needs]
        if not wants or self.stream is None or self.calibration is None:
            return self._with_gradients({layer.name: LayerStats(layer) for layer in layers})
        library = self.options.library if stage is self.stages[0] else None
        kept = None if library is None else library.get(live.block.name, layers, wants)
        if kept is not None:
            feed(kept)
            return self._with_gradients(kept)
        run, reference = self._runs(live, dense, number)
        pairs = any("reference" in w.needs for w in wants)
        stats = collect(
            live, layers, wants, run, self.calibration.fitted,
            reference=reference if pairs else None, batch=self.options.batch,
        )  # fmt: skip
        if library is not None:
            library.put(live.block.name, stats)
        feed(stats)
        return self._with_gradients(stats)

    def _with_gradients(self, stats: dict[str, LayerStats]) -> dict[str, LayerStats]:
        for name, found in stats.items():
            if name in self.gradients:
                found.collected = {**found.collected, **self.gradients[name].collected}
        return stats

    def _advance(self, live: LiveBlock, dense: LiveBlock | None, number: int) -> HeldOut | None:
        """Takes the sequences behind the block; measures the layers on those not fitted to."""
        if self.stream is None or self.calibration is None:
            return None
        with torch.inference_mode():
            if self.reference is not None and dense is not None:
                self.reference.advance(number, dense.module)
            if not self.calibration.held_out:
                self.stream.advance(number, live.module)
                return None
            with HeldOut(live, self.calibration.held_out) as heldout:
                self.stream.advance(number, live.module, heldout.visit)
        return heldout

    def _hand_over(
        self, live: LiveBlock, stats: dict[str, LayerStats], heldout: HeldOut | None
    ) -> list[LayerReport]:
        slots = live.slots()
        stored = {path: self.sink.put_module(path, records) for path, records in slots.items()}
        return [
            layer_report(
                live, layer, stored[layer.module][layer.slot], stats[layer.name],
                None if heldout is None else heldout.error(layer),
            )
            for layer in live.layers
        ]  # fmt: skip

    def _extras(self) -> list[LayerReport]:
        """Layers outside the blocks, without statistics of their inputs unless they can be had."""
        reports: list[LayerReport] = []
        for module in dict.fromkeys(layer.module for layer in self.extra):
            layers = tuple(layer for layer in self.extra if layer.module == module)
            live = LiveBlock(self.source, Block(module, layers), self.options.device)
            stats = self._extra_statistics(live, module)
            for step in self.steps:
                self._apply(step, live, live.layers, stats, len(self.source.blocks))
            reports += self._hand_over(live, stats, None)
            for name in live.untouched:
                self.sink.put_tensor(name, live.tensors[name])
        return reports

    def _extra_statistics(self, live: LiveBlock, module: str) -> dict[str, LayerStats]:
        wants = [w for w in wanted(self.steps) if not w.needs]
        stream = self.stream
        if not wants or stream is None or self.calibration is None:
            return {layer.name: LayerStats(layer) for layer in live.layers}
        stream.outline.set_submodule(module, live.module)
        stats = collect(
            live, live.layers, wants, stream.finish, self.calibration.fitted,
            batch=self.options.batch,
        )  # fmt: skip
        feed(stats)
        return stats
