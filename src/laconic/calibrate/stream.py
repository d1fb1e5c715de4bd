"""Sequences on their way through the blocks of a model, one block at a time.

Where each block takes what the one before it gave, only the hidden states are kept between blocks
(`SequentialStream`). Where something else lies between blocks, the whole model is run for each of them
(`WholeStream`): slower, and all weights stay in memory, but the same to those who use it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import local
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from laconic.calibrate.live import LiveBlock
from laconic.calibrate.outline import call, outline_of
from laconic.calibrate.recorder import Call, Recorder, interned
from laconic.calibrate.states import States
from laconic.errors import DataError
from laconic.models.source import ModelSource, structure_of
from laconic.numerics.parallel import one_thread, parallel_map

Inputs = Sequence[dict[str, Tensor]]  # one sequence each, batch dimension 1


Mapper = Callable[[Callable[[int], None], Sequence[int]], Any]  # calls a function with each number


class Spectator(Protocol):
    """Who looks on while sequences pass through a block.

    Attributes:
        sequences: numbers of those that it looks at.
    """

    @property
    def sequences(self) -> Collection[int]: ...

    def visit(self, sequence: int, forward: Callable[[], Any]) -> Any:
        """Calls `forward`, which runs the sequence, and returns what it returned."""
        ...


class Stream(ABC):
    """Sequences before some block."""

    count: int

    @abstractmethod
    def run(self, number: int, block: nn.Module, sequence: int) -> Any:
        """Takes a sequence through `block`, in the place of block `number`."""

    @abstractmethod
    def advance(
        self,
        number: int,
        block: nn.Module,
        spectator: Spectator | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Leaves all sequences behind `block`.

        Args:
            number: of the block whose place it has.
            block: computes.
            spectator: looks on.
            last: nobody will ask what lies behind: only what the spectator looks at is run.
        """

    def resume(self, number: int) -> bool:
        """Stands before block `number`, where an interrupted run had come; false if it cannot."""
        return False

    def forget(self, number: int) -> None:  # noqa: B027
        """Drops what was kept to resume before block `number`."""

    @abstractmethod
    def fork(self) -> "Stream":
        """The same sequences at the same place, going their own way from here."""

    @abstractmethod
    def finish(self, sequence: int) -> Any:
        """What the model answers to a sequence that has been through all blocks."""

    @property
    @abstractmethod
    def outline(self) -> nn.Module:
        """The model around the blocks; what `finish` calls."""


class SequentialStream(Stream):
    """Hidden states between two blocks, and the other arguments of each block."""

    def __init__(
        self, source: ModelSource, inputs: Inputs, device: str,
        calls: Sequence[Sequence[Call]], states: States, folder: Path | None, name: str = "hidden",
    ) -> None:  # fmt: skip
        self._source, self._inputs, self._device = source, inputs, device
        self._calls, self._states, self._folder, self._name = calls, states, folder, name
        self.count = len(inputs)
        self._local = local()  # several threads may finish sequences

    def held_bytes(self, width: int) -> int:
        """What all sequences hold inside a block at most, in fp32: what came in, and twice `width`."""
        shapes = [self._states.shape(sequence) for sequence in range(self.count)]
        return sum(4 * (shape.numel() // shape[-1]) * (shape[-1] + 2 * width) for shape in shapes)

    def run(self, number: int, block: nn.Module, sequence: int) -> Tensor:
        given = self._calls[sequence][number]
        hidden = self._states.get(sequence).to(self._device)
        return _hidden(block(hidden, *given.args, **given.kwargs))

    def advance(
        self,
        number: int,
        block: nn.Module,
        spectator: Spectator | None = None,
        *,
        last: bool = False,
    ) -> None:
        if last:
            _look(spectator, lambda sequence: self.run(number, block, sequence))
            return

        def forward(sequence: int) -> Tensor:
            run = partial(self.run, number, block, sequence)
            looks = spectator is not None and sequence in spectator.sequences
            out: Tensor = spectator.visit(sequence, run) if spectator and looks else run()
            return out

        self._pass(number, forward, parallel_map)

    def walk(self, number: int, block: nn.Module, each: Mapper, *, last: bool = False) -> None:
        """Leaves all sequences behind `block`, which `each` takes through it in a way of its own."""
        self._pass(number, partial(self.run, number, block), each, keep=not last)

    def _pass(
        self, number: int, forward: Callable[[int], Tensor], each: Mapper, *, keep: bool = True
    ) -> None:
        after = States.new(self._folder if keep else None, f"{self._name}-{number + 1}")

        def move(sequence: int) -> None:
            out = forward(sequence)
            if keep:
                after.put(sequence, out.cpu())

        each(move, range(self.count))
        self._states = after

    def resume(self, number: int) -> bool:
        if self._folder is None or not (self._folder / f"{self._name}-{number}").is_dir():
            return False
        self._states = States(self._folder / f"{self._name}-{number}")
        return True

    def forget(self, number: int) -> None:
        """Drops the hidden states before block `number`, once they are not needed to resume."""
        if self._folder is not None:
            States(self._folder / f"{self._name}-{number}").drop()

    def fork(self) -> "SequentialStream":
        return SequentialStream(
            self._source, self._inputs, self._device, self._calls, self._states, self._folder,
            "reference",
        )  # fmt: skip

    def finish(self, sequence: int) -> Any:
        outline = self.outline
        self._local.last = self._states.get(sequence).to(self._device)
        return call(outline, self._inputs[sequence], self._device)

    @cached_property
    def outline(self) -> nn.Module:
        outline = outline_of(self._source, self._device)
        for block in self._source.blocks:
            module = outline.get_submodule(block.name)
            module.forward = lambda *args, **kwargs: self._local.last
        return outline


class WholeStream(Stream):
    """The whole model, every block of it in memory, run from end to end for each block."""

    def __init__(
        self, outline: nn.Module, blocks: Mapping[str, nn.Module], inputs: Inputs, device: str
    ) -> None:
        self._outline, self._paths = outline, list(blocks)
        self._inputs, self._device, self.count = inputs, device, len(inputs)
        for path, block in blocks.items():
            outline.set_submodule(path, block)

    def run(self, number: int, block: nn.Module, sequence: int) -> Any:
        if self._outline.get_submodule(self._paths[number]) is not block:
            self._outline.set_submodule(self._paths[number], block)
        return call(self._outline, self._inputs[sequence], self._device)

    def advance(
        self,
        number: int,
        block: nn.Module,
        spectator: Spectator | None = None,
        *,
        last: bool = False,
    ) -> None:
        self._outline.set_submodule(self._paths[number], block)
        _look(spectator, lambda sequence: self.run(number, block, sequence))

    def fork(self) -> "WholeStream":
        twin = structure_of(self._outline)
        blocks = {path: twin.get_submodule(path) for path in self._paths}
        return WholeStream(twin, blocks, self._inputs, self._device)

    def finish(self, sequence: int) -> Any:
        return call(self._outline, self._inputs[sequence], self._device)

    @property
    def outline(self) -> nn.Module:
        return self._outline


def open_stream(
    source: ModelSource, inputs: Inputs, *, device: str = "cpu", folder: Path | None = None
) -> Stream:
    """Sequences before the first block of `source`.

    Args:
        source: the model.
        inputs: what the model is called with, by argument name, one sequence each.
        device: where to compute.
        folder: where hidden states are kept between blocks; in memory if there is none.

    Raises:
        DataError: there are no sequences, or the model cannot take them.
    """
    if not inputs:
        raise DataError("there are no calibration sequences")
    outline = outline_of(source, device)
    paths = [block.name for block in source.blocks]
    recorder = Recorder(outline, paths)
    states = States.new(folder, "hidden-0")
    pool: dict[Any, Tensor] = {}
    calls = []
    with torch.inference_mode(), one_thread():
        for number, given in enumerate(inputs):
            if not recorder.record(given, device):
                blocks = {b.name: LiveBlock(source, b, device).module for b in source.blocks}
                return WholeStream(outline_of(source, device), blocks, inputs, device)
            states.put(number, recorder.hidden.cpu())
            calls.append([interned(call, pool) for call in recorder.calls])
    recorder.close()
    return SequentialStream(source, inputs, device, calls, states, folder)


def _look(spectator: Spectator | None, run: Callable[[int], Any]) -> None:
    """Runs what the spectator looks at, and nothing else."""
    if spectator is not None:
        parallel_map(lambda s: spectator.visit(s, lambda: run(s)), sorted(spectator.sequences))


def _hidden(output: Any) -> Tensor:
    """The hidden states in what a block returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
