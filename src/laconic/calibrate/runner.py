"""The runner: takes a model through a chain of methods, block by block, and hands the results on.

    source --one block--> live block <--sums-- sequences before the block
                              |  steps of the chain, one after the other
                              v
                      slots of modules --> sink;  sequences --> behind the block

One block, its sums and the sequences between two blocks are in memory at a time. Tensors that no
method touches pass through; those of embeddings and heads are stored without loss as byte planes.
"""

from collections.abc import Sequence
from dataclasses import asdict

from laconic.calibrate.block_pass import BlockPass, Course, apply
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.chain import from_gradients, wanted
from laconic.calibrate.collect import collect
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.gradients import collect_gradients
from laconic.calibrate.heldout import HeldOut
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.options import RunOptions
from laconic.calibrate.reports import LayerReport, from_json, layer_report
from laconic.calibrate.starved import feed
from laconic.calibrate.steps import BlockStep, Step
from laconic.calibrate.stream import open_stream
from laconic.errors import DataError
from laconic.models.layout import Block
from laconic.models.sink import Sink
from laconic.models.source import ModelSource
from laconic.numerics.allocator import give_back_memory
from laconic.numerics.precision import exact_products
from laconic.progress import SILENT, Progress
from laconic.tensors import Dense
from laconic.tensors.stored import Record


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
    with exact_products():
        return runner.run(progress, what)


class _Runner:
    def __init__(
        self, source: ModelSource, sink: Sink, steps: Sequence[Step],
        calibration: Calibration | None, also: Sequence[str], options: RunOptions,
    ) -> None:  # fmt: skip
        self.source, self.sink, self.steps, self.options = source, sink, steps, options
        self.calibration = calibration
        self.course = Course(steps, options, calibration)
        self.extra, self.kept = choose_extra(source, also)
        wants = wanted(steps)
        if wants and calibration is None:
            raise DataError(
                f"the method needs calibration data ({wants[0].name} of layer inputs): give --data"
            )
        self.follows_dense = (
            options.inputs == "dense"
            or any("reference" in w.needs for w in wants)
            or any(isinstance(step, BlockStep) and step.follows_dense for step in steps)
        )
        #: whether layers behind the last block want to see sequences
        self.finishes = bool(self.extra) and any(not w.needs for w in wants)

    def run(self, progress: Progress, what: str) -> list[LayerReport]:
        of_gradients = from_gradients(self.steps)
        if self.calibration is not None and of_gradients:
            self.course.gradients = collect_gradients(
                self.source, self.calibration, of_gradients, device=self.options.device,
                progress=progress,
            )  # fmt: skip
        done_before = int(self.sink.resumed().get("blocks", 0))
        if self.calibration is not None and (
            done_before < len(self.source.blocks) or self.finishes
        ):
            self._open(done_before)
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
        self.course.stream = stream = open_stream(
            self.source, self.calibration.inputs, device=options.device, folder=folder
        )
        if self.follows_dense:
            self.course.reference = stream.fork()
        if first and not all(stream.resume(first) for stream in self.course.streams):
            self.sink.restart()

    def _checkpoint(self, blocks: int, reports: list[LayerReport]) -> None:
        self.sink.checkpoint({"blocks": blocks, "reports": [asdict(r) for r in reports]})
        for stream in self.course.streams:
            stream.forget(blocks - 1)

    def _block(self, number: int, block: Block) -> list[LayerReport]:
        live = LiveBlock(self.source, block, self.options.device)
        dense = None
        if self.course.reference is not None:
            dense = LiveBlock(self.source, block, self.options.device)
        last = number + 1 == len(self.source.blocks) and not self.finishes
        stats, heldout = BlockPass(self.course, live, dense, number, last).run()
        reports = self._hand_over(live, stats, heldout)
        for name in live.untouched:
            self.sink.put_tensor(name, live.tensors[name])
        return reports

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
                apply(self.course, step, live, live.layers, stats, len(self.source.blocks))
            reports += self._hand_over(live, stats, None)
            for name in live.untouched:
                self.sink.put_tensor(name, live.tensors[name])
        return reports

    def _extra_statistics(self, live: LiveBlock, module: str) -> dict[str, LayerStats]:
        wants = [w for w in wanted(self.steps) if not w.needs]
        stream = self.course.stream
        if not wants or stream is None or self.calibration is None:
            return {layer.name: LayerStats(layer) for layer in live.layers}
        stream.outline.set_submodule(module, live.module)
        stats = collect(
            live, live.layers, wants, stream.finish, self.calibration.fitted,
            batch=self.options.batch,
        )  # fmt: skip
        feed(stats, self.options.device)
        return stats
