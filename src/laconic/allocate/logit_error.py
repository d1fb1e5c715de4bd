"""How far the answers of a model are from the dense ones when one layer is changed.

The blocks before the changed one compute what they did before: their outputs are replayed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from laconic.allocate.fitness import LiveModel
from laconic.calibrate.outline import REFUSALS, call, refused
from laconic.errors import DataError, UsageError
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.progress import SILENT, Progress

PRECISION = torch.float32  # of answers; sums are fp64
TOGETHER = 16  # sequences of one shape in one pass
LARGEST = 2 << 30  # bytes of dense answers that are kept
SAME = 1e-8  # error of replayed answers, beside computed ones, at most


class LogitError:
    """Relative squared error of the answers, `sum |y - y_dense|^2 / sum |y_dense|^2`, of a live model.

    Args:
        source: that `model` was made of.
        model: dense when this is made; asked again in whatever state it is in then.
        inputs: arguments by name, one sequence each (batch dimension 1).
        predictions: answers (positions of text, images) that are looked at: as many of the sequences, in
            their order, as hold so many; at least one.
        progress: follows the first run.

    Raises:
        DataError: no sequences, or answers that are no finite logits, or more than 2 GiB of them.
        UsageError: no predictions.

    Attributes:
        predictions: how many there are.
        sequences: that hold them.
        replays: whether blocks come one after the other, so that those before a change can be replayed.
    """

    def __init__(
        self, source: ModelSource, model: LiveModel, inputs: Sequence[Mapping[str, Tensor]],
        *, predictions: int = 1024, progress: Progress = SILENT,
    ) -> None:  # fmt: skip
        if predictions < 1:
            raise UsageError(f"predictions must be at least 1, found {predictions}")
        if not inputs:
            raise DataError("there are no sequences to compare answers on")
        self._model = model
        self._blocks = [model.module.get_submodule(block.name) for block in source.blocks]
        self._replayed = _Replay(self._blocks)
        chosen: list[dict[str, Tensor]] = []
        self._dense: list[Tensor] = []
        self.predictions = 0
        for given in progress.track(inputs, "asking the dense model", total=len(inputs)):
            answer = self._answer(given)
            self.predictions += len(answer)
            if self.predictions * answer.shape[-1] * PRECISION.itemsize > LARGEST:
                raise DataError(
                    f"{self.predictions} answers of {answer.shape[-1]} numbers are more than 2 GiB: "
                    "look at fewer predictions"
                )
            chosen.append(dict(given))
            self._dense.append(answer)
            if self.predictions >= predictions:
                break
        self.sequences, self._batches = len(chosen), _batches(chosen)
        self._energy = sum(answer.double().square().sum().item() for answer in self._dense)
        if not self._energy > 0:
            raise DataError("the answers of the dense model are all zero")
        self.replays = self._replayed.in_order(lambda: self._answer(chosen[0]))
        if self.replays:
            with self.behind(len(self._blocks) - 1):
                self.replays = self() <= SAME

    def __call__(self) -> float:
        """The error of the model as it is now."""
        return sum(parallel_map(self._off, range(len(self._batches)))) / self._energy

    @contextmanager
    def behind(self, block: int) -> Iterator[None]:
        """Inside, blocks before number `block` are not computed: they put out what they do on entry.

        Nothing is gained, and nothing is lost, where blocks do not come one after the other.
        """
        if not block or not self.replays:
            yield
            return
        with self._replayed.recording(block):
            parallel_map(self._asked, range(len(self._batches)))
        with self._replayed.replaying(block):
            yield

    def _asked(self, batch: int) -> Tensor:
        self._replayed.current(batch)
        return self._answer(self._batches[batch][1])

    def _off(self, batch: int) -> float:
        answer = self._asked(batch)
        dense = torch.cat([self._dense[number] for number in self._batches[batch][0]])
        return float((answer - dense).double().square().sum().item())

    @torch.inference_mode()
    def _answer(self, given: Mapping[str, Tensor]) -> Tensor:
        """Logits (predictions, classes) fp32."""
        try:
            output = call(self._model.module, dict(given), self._model.device)
        except REFUSALS as error:
            raise refused(error) from error
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim < 2:
            raise DataError(f"{type(self._model.module).__name__} gives no logits to compare")
        answer = logits.reshape(-1, logits.shape[-1]).to(PRECISION)
        if not self._dense and not torch.isfinite(answer).all():
            raise DataError(
                "the dense model's answers are not finite; check the data and the model"
            )
        return answer


def _batches(chosen: Sequence[Mapping[str, Tensor]]) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Numbers of sequences with equal shapes, up to `TOGETHER`, and their arguments together."""
    alike: dict[Any, list[int]] = {}
    for number, given in enumerate(chosen):
        alike.setdefault(tuple((n, tuple(v.shape)) for n, v in given.items()), []).append(number)
    found = []
    for numbers in alike.values():
        for start in range(0, len(numbers), TOGETHER):
            part = numbers[start : start + TOGETHER]
            names = chosen[part[0]]
            found.append((part, {n: torch.cat([chosen[i][n] for i in part]) for n in names}))
    return found


class _Replay:
    """Outputs of blocks, remembered by batch and given again instead of being computed."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = list(blocks)
        self._outputs: dict[tuple[int, int], Any] = {}  # by block and batch
        self._thread = local()

    def current(self, batch: int) -> None:
        """Says which batch this thread is about to send through the model."""
        self._thread.batch = batch

    def in_order(self, ask: Any) -> bool:
        """Whether `ask` calls every block once, in their order."""
        calls: list[int] = []
        handles = [
            block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
            for number, block in enumerate(self._blocks)
        ]
        try:
            ask()
        finally:
            for handle in handles:
                handle.remove()
        return calls == list(range(len(self._blocks)))

    @contextmanager
    def recording(self, block: int) -> Iterator[None]:
        """Remembers what the last block before `block` puts out, and the shapes of those before it."""

        def keep(number: int, output: Any) -> None:
            shape_only = number < block - 1  # nobody looks at what they hold
            kept = tree_map(_shape, output) if shape_only else output
            self._outputs[number, self._thread.batch] = kept

        handles = [
            self._blocks[number].register_forward_hook(
                lambda _, __, output, number=number: keep(number, output)
            )
            for number in range(block)
        ]
        self._outputs.clear()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replaying(self, block: int) -> Iterator[None]:
        """Blocks before `block` give what was remembered."""

        def replay(number: int) -> Any:
            return lambda *_, **__: tree_map(_copy, self._outputs[number, self._thread.batch])

        for number in range(block):
            self._blocks[number].__dict__["forward"] = replay(number)
        try:
            yield
        finally:
            for number in range(block):
                del self._blocks[number].__dict__["forward"]
            self._outputs.clear()


def _copy(value: Any) -> Any:
    """What the next block may change in place."""
    return (
        value.clone()
        if isinstance(value, Tensor) and value.stride() != (0,) * value.ndim
        else value
    )


def _shape(value: Any) -> Any:
    """A tensor of the same shape that takes no memory."""
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    return value
