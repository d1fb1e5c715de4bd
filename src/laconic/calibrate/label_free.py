"""How much each weight moves the answers of a model, without labels.

    h_ij = E_v (d(v . y) / dW_ij)^2,  v ~ N(0, I)

is the diagonal of the Gauss-Newton matrix of the answers y: the mean over random directions of what
Hutchinson's estimator squares (MLoRQ, Gordon et al., 2025, arXiv 2507.09616). The whole dense model is in memory, in fp32.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock, Trace
from laconic.calibrate.outline import REFUSALS, call, outline_of, refused
from laconic.calibrate.statistics import Observation, Statistic, Task, zero_sums
from laconic.calibrate.sums import Sums
from laconic.errors import DataError, UsageError
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.progress import SILENT, Progress
from laconic.tensors.modules import Sight

AT_ONCE = 8  # random directions in one pass: a sequence is in memory that often
ENOUGH = 10  # directions after which it may stop
SETTLED = 1e-4  # of a layer's mean, changes of which are small


@dataclass(frozen=True)
class SquaredDerivatives(Statistic):
    """Sum of squares of the weight's derivatives, of several copies of a sequence one below the other.

    Sums: `square` (out, in).

    Attributes:
        copies: of the sequence.
    """

    copies: int = 1

    name = "squared derivatives"
    of_inputs = False
    needs = frozenset({"gradients"})

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        assert seen.gradients is not None
        return {"square": zero_sums(seen.inputs, seen.gradients.shape[1], seen.inputs.shape[1])}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        assert seen.gradients is not None
        inputs, gradients = (part.reshape(self.copies, -1, part.shape[1]) for part in (seen.inputs, seen.gradients))  # fmt: skip

        def add() -> None:
            for x, g in zip(inputs, gradients):
                sums["square"] += (g.T @ x).square_()

        return [add]


def label_free_hessian(
    source: ModelSource, calibration: Calibration,
    *, sequences: int = 32, probes: int = 100, seed: int = 0, device: str = "cpu",
    progress: Progress = SILENT,
) -> dict[str, Tensor]:  # fmt: skip
    """The mean squared derivative of the answers by each weight, for all layers of the blocks.

    Every sequence is differentiated along random directions, `AT_ONCE` together, until `probes` were taken,
    or more than `ENOUGH` were and the last ones changed no layer's mean by more than `SETTLED` of itself.
    Sequences count alike. The same bits for any number of threads.

    Args:
        source: the dense model.
        calibration: sequences; labels are not looked at.
        sequences: of those to be fitted, that are used.
        probes: random directions for each, at most; at least 1.
        seed: of the directions.
        device: where to compute.
        progress: follows the sequences.

    Returns:
        (out, in...) flattened to (R, C), float32, by layer name; in units of a mean over the answers'
        elements. Layers that no sequence reached have zeros.

    Raises:
        DataError: no sequences, or the model gives no finite answers.
        UsageError: no probes or sequences.
    """
    if probes < 1 or sequences < 1:
        raise UsageError(f"probes and sequences must be at least 1, found {probes}, {sequences}")
    numbers = list(calibration.fitted)[:sequences]
    if not numbers:
        raise DataError("there are no sequences to differentiate the answers on")
    model = _Differentiated(source, calibration, device)
    found = {
        layer.name: torch.zeros(layer.shape[0], layer.shape[1:].numel(), device=device)
        for layer in model.layers
    }
    step = torch.get_num_threads()
    starts = range(0, len(numbers), step)
    with model.watched():
        for start in progress.track(starts, "differentiating the answers", total=len(starts)):
            together = numbers[start : start + step]
            for squares in parallel_map(lambda n: model.mean(n, probes, seed), together):
                for name, square in squares.items():
                    found[name] += square.to(torch.float32) / len(numbers)
    return found


class _Differentiated:
    """A model whose layers keep the gradients of their outputs."""

    def __init__(self, source: ModelSource, calibration: Calibration, device: str) -> None:
        self._calibration, self._device = calibration, device
        self._model = outline_of(source, device)
        self._lives = [LiveBlock(source, block, device) for block in source.blocks]
        for live in self._lives:
            self._model.set_submodule(live.block.name, live.module)
        self.layers = [layer for live in self._lives for layer in live.layers]
        routed = any(layer.part is not None for layer in self.layers)
        self._copies = (
            1 if routed else AT_ONCE
        )  # experts are shown positions without their sequence

    def watched(self) -> ExitStack:
        """While it is open, layers can be looked at."""
        stack = ExitStack()
        self._watches = [
            stack.enter_context(live.watched(live.layers, on_sight=_keep_gradient))
            for live in self._lives
        ]
        return stack

    def mean(self, sequence: int, probes: int, seed: int) -> dict[str, Tensor]:
        """By layer name, the mean of the squared derivatives over random directions."""
        draw = torch.Generator().manual_seed(seed * 1_000_003 + sequence)
        total: dict[str, Tensor] = {}
        taken, before = 0, torch.zeros(0)
        while taken < probes:
            copies = min(self._copies, probes - taken)
            statistic = SquaredDerivatives(copies)
            for name, stats in self._squares(sequence, statistic, draw).items():
                sums = stats.collected[statistic].sums
                if sums is not None:
                    total[name] = total[name] + sums["square"] if name in total else sums["square"]
            taken += copies
            now = torch.tensor([float(square.sum()) / taken for square in total.values()])
            if taken > ENOUGH and len(before) and ((now - before).abs() <= SETTLED * before).all():
                break
            before = now
        return {name: square / taken for name, square in total.items()}

    def _squares(
        self, sequence: int, statistic: SquaredDerivatives, draw: torch.Generator
    ) -> dict[str, LayerStats]:
        sums = Sums([statistic], self.layers)
        sums.add(self._traced(sequence, statistic.copies, draw), gradients=True)
        sums.run()
        return sums.of_layers()

    def _traced(self, sequence: int, copies: int, draw: torch.Generator) -> Trace:
        """What the layers multiplied, with gradients of a random mean of the answers."""
        given = self._calibration.inputs[sequence]
        inputs = {name: torch.cat([value] * copies) for name, value in given.items()}
        with torch.enable_grad(), ExitStack() as stack:
            traces = [stack.enter_context(watch.trace()) for watch in self._watches]
            try:
                output = call(self._model, inputs, self._device)
            except REFUSALS as error:
                raise refused(error) from error
            logits = getattr(output, "logits", output)
            if not isinstance(logits, Tensor) or not torch.isfinite(logits).all():
                raise DataError(f"the model gives no finite answers to sequence {sequence}")
            answers = logits.reshape(copies, -1)
            v = torch.stack([torch.randn(answers.shape[1], generator=draw) for _ in answers])
            ((answers * v.to(answers)).sum() / answers.shape[1] ** 0.5).backward()
        return [entry for trace in traces for entry in trace]


def _keep_gradient(sight: Sight) -> None:
    """Has the outputs remember their gradient; the first of a model start to need one."""
    if sight.outputs.requires_grad:
        sight.outputs.retain_grad()
    else:
        sight.outputs.requires_grad_()
