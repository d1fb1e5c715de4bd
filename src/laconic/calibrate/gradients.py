"""Gradients of a model's loss with respect to what its layers put out, summed for each layer.

The whole dense model is in memory, in fp32 as it computes. Parameters need no gradients: those of a
weight are products of what its layer saw and of the gradients of its outputs.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock, Trace
from laconic.calibrate.outline import REFUSALS, call, outline_of, refused
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.sums import Sums
from laconic.errors import DataError
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.progress import SILENT, Progress
from laconic.tensors.modules import Sight


def collect_gradients(
    source: ModelSource, calibration: Calibration, wants: Iterable[Statistic],
    *, device: str = "cpu", progress: Progress = SILENT,
) -> dict[str, LayerStats]:  # fmt: skip
    """Statistics of gradients, for all layers of the blocks at once.

    The loss of a sequence is the mean cross entropy of its predictions: of the next token, or of its
    class. Every sequence is differentiated on its own, on one thread, and sums are taken in the order
    of the data: the same bits for any number of threads.

    Args:
        source: the dense model.
        calibration: sequences; those to be fitted are used.
        wants: statistics.
        device: where to compute.
        progress: follows the sequences.

    Raises:
        DataError: the loss is not finite, or the model gives no logits to take one of.
    """
    statistics = list(dict.fromkeys(wants))
    model = outline_of(source, device)
    lives = [LiveBlock(source, block, device) for block in source.blocks]
    for live in lives:
        model.set_submodule(live.block.name, live.module)
    layers = [layer for live in lives for layer in live.layers]
    sums = Sums(statistics, layers)

    def traced(sequence: int) -> Trace:
        inputs = calibration.inputs[sequence]
        traces: list[Trace] = []
        with torch.enable_grad(), ExitStack() as stack:
            traces = [stack.enter_context(watch.trace()) for watch in watches]
            try:
                output = call(model, inputs, device)
            except REFUSALS as error:
                raise refused(error) from error
            loss = sequence_loss(output, inputs, _target(calibration, sequence))
            if not torch.isfinite(loss):
                raise DataError(f"the loss of calibration sequence {sequence} is {loss.item()}")
            loss.backward()  # type: ignore[no-untyped-call]
        return [entry for trace in traces for entry in trace]

    with ExitStack() as stack:
        watches = [
            stack.enter_context(live.watched(live.layers, on_sight=_keep_gradient))
            for live in lives
        ]
        step = torch.get_num_threads()
        numbers = list(calibration.fitted)
        starts = list(range(0, len(numbers), step))
        for start in progress.track(starts, "collecting gradients", total=len(starts)):
            for trace in parallel_map(traced, numbers[start : start + step]):
                sums.add(trace, gradients=True)
            sums.run()
    return sums.of_layers()


def sequence_loss(output: Any, inputs: dict[str, Tensor], target: Tensor | None) -> Tensor:
    """Mean cross entropy (a number) of a model's answer to one sequence, in fp32."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise DataError(f"the model returned {type(output).__name__}, not logits")
    if target is None and "input_ids" in inputs and logits.ndim == 3:
        target, logits = inputs["input_ids"][:, 1:].flatten(), logits[:, :-1].flatten(0, 1)
    elif target is None:
        raise DataError("a classifier's loss needs labels: give labelled data")
    return F.cross_entropy(logits.float(), target.to(logits.device))


def _target(calibration: Calibration, sequence: int) -> Tensor | None:
    targets = calibration.targets
    return None if targets is None else targets[sequence : sequence + 1]


def _keep_gradient(sight: Sight) -> None:
    """Has the outputs remember their gradient; the first of a model start to need one."""
    if sight.outputs.requires_grad:
        sight.outputs.retain_grad()
    else:
        sight.outputs.requires_grad_()
