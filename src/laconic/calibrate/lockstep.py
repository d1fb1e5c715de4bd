"""Sequences that go through a block side by side, and all wait before a layer until it is decided.

Layers are compressed in order of computation, each on inputs that come through those before it. Run
again for each of them, a block would be computed as often as it has inputs of layers; here it is
computed once: every sequence is a greenlet, which is left at the first layer that is still open and
entered again when it is decided. What all of them hold at that moment must fit into memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from laconic.calibrate.live import LiveBlock, Trace
from laconic.models.layout import Layer

T = TypeVar("T")


@dataclass(frozen=True)
class Arrival:
    """Where a sequence stands: before `path`, a module of a group, about to be called with these."""

    group: int
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Decide = Callable[[Sequence[Layer], dict[int, Arrival]], None]


class Lockstep:
    """Takes sequences through a block; `decide` compresses the layers before which all of them wait.

    Args:
        live: the block.
        groups: its layers by common input, in order of computation; every layer's module is called
            once, and its group's modules are called with one input.
        decide: is given a group, and for each sequence that has reached it where it stands. It runs on
            the caller's thread while all others wait.
        finish: whether the sequences go on to the end of the block, once all is decided.
    """

    def __init__(
        self,
        live: LiveBlock,
        groups: Sequence[Sequence[Layer]],
        decide: Decide,
        finish: bool = True,
    ) -> None:
        self._live, self._groups, self._decide, self._finish = live, groups, decide, finish
        self._decided = 0  # groups before this one

    def map(self, function: Callable[[int], T], sequences: Iterable[int]) -> list[T]:
        """`[function(s) for s in sequences]`, all at once; as many compute at a time as torch has threads.

        Without `finish` only what was there before the last group.

        Raises:
            The first error of a sequence or of `decide`, after all have stopped.
        """
        numbers, threads = list(sequences), torch.get_num_threads()
        gangs = [_Gang(function, numbers[first::threads]) for first in range(threads)]
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, threads)
            for number, group in enumerate(self._groups):
                for path in dict.fromkeys(layer.module for layer in group):
                    stack.callback(self._listen(number, path).remove)
            for gang in gangs:
                stack.callback(gang.close)
            for number, group in enumerate(self._groups):
                self._move(gangs)
                arrived = {s: at for gang in gangs for s, at in gang.waiting.items()}
                here = {s: at for s, at in sorted(arrived.items()) if at.group == number}
                self._decide(group, here)
                self._decided = number + 1
            if self._finish:
                self._move(gangs)
        results = {number: out for gang in gangs for number, out in gang.results.items()}
        return [results[number] for number in numbers if number in results]

    def _move(self, gangs: Sequence["_Gang[T]"]) -> None:
        """Everybody goes on to the next layer that is open, or to the end."""
        for future in [gang.start(self._decided) for gang in gangs]:
            future.result()

    def _listen(self, group: int, path: str) -> torch.utils.hooks.RemovableHandle:
        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            here = getcurrent()
            if group >= self._decided and here.parent is not None:
                here.parent.switch(Arrival(group, path, args, kwargs))

        return self._live.computing(path).register_forward_pre_hook(stop, with_kwargs=True)


class _Gang(Generic[T]):
    """Some of the sequences, on a thread that is theirs: greenlets cannot change threads.

    Attributes:
        waiting: where those are that have not come to the end, by number.
        results: of those that have.
    """

    def __init__(self, function: Callable[[int], T], numbers: Sequence[int]) -> None:
        self._function, self._numbers = function, numbers
        self._walkers: dict[int, greenlet] = {}
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self.waiting: dict[int, Arrival] = {}
        self.results: dict[int, T] = {}

    def start(self, decided: int) -> Any:
        """Moves those that do not wait before a group from `decided` on; a future."""
        return self._pool.submit(self._move, decided)

    def close(self) -> None:
        """Ends those that have not come to the end, and the thread."""
        self._pool.submit(self._end).result()
        self._pool.shutdown()

    def _move(self, decided: int) -> None:
        inference, grad = self._modes
        if not self._walkers:
            self._walkers = {n: greenlet(self._function) for n in self._numbers}
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            for number, walker in self._walkers.items():
                at = self.waiting.pop(number, None)
                if at is not None and at.group >= decided:
                    self.waiting[number] = at
                elif not walker.dead:
                    out = walker.switch() if at is not None else walker.switch(number)
                    if walker.dead:
                        self.results[number] = out
                    else:
                        self.waiting[number] = out

    def _end(self) -> None:
        for walker in self._walkers.values():
            if walker and not walker.dead:
                walker.throw(GreenletExit)


@contextmanager
def looking(
    live: LiveBlock, layers: Sequence[Layer], arrived: Mapping[int, Arrival],
    *, outputs: bool = False,
) -> Iterator[Callable[[int], Trace]]:  # fmt: skip
    """What `layers`, as they are now, would multiply of each sequence, by its number.

    Args:
        live: their block.
        layers: a group.
        arrived: where the sequences stand.
        outputs: whether outputs of the layers are asked for, too.
    """
    paths = dict.fromkeys(layer.module for layer in layers)
    with live.watched(layers, outputs=outputs) as watch:

        def look(sequence: int) -> Trace:
            at, found = arrived[sequence], []
            for path in paths:
                module = live.computing(path)
                sight = None if outputs else module.foresee(*at.args, **at.kwargs)
                if sight is not None:
                    found.append((path, sight))
                    continue
                with watch.trace() as trace:
                    module(*at.args, **at.kwargs)
                found += trace
            return found

        yield look


class _Stopped(Exception):
    """Another sequence failed."""
