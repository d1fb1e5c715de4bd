"""What the blocks of a model are called with, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import xxhash
from torch import Tensor, nn

from laconic.calibrate.outline import REFUSALS, call, refused
from laconic.tensors.dtypes import to_raw


@dataclass(frozen=True)
class Call:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Stop(Exception):
    """The last block was reached."""


class Recorder:
    """Puts a listener into the place of each block of an outline, and sees whether they form a chain."""

    def __init__(self, outline: nn.Module, paths: Sequence[str]) -> None:
        self._outline, self._paths, self._count = outline, paths, len(paths)
        self.hidden: Tensor
        self.calls: list[Call] = []
        self.chained = True
        for number, path in enumerate(paths):
            block = outline.get_submodule(path)
            block.forward = partial(self._listen, number)

    def record(self, inputs: dict[str, Tensor], device: str) -> bool:
        """Runs the model up to its last block; false if the blocks do not follow one another."""
        self.calls, self.chained = [], True
        try:
            call(self._outline, inputs, device)
        except _Stop:
            return self.chained
        except REFUSALS as error:
            if self.calls:  # something between blocks did not take what a block does not give
                return False
            raise refused(error) from error
        return False

    def close(self) -> None:
        """Lets go of the outline, which then is freed at once: it holds embeddings."""
        for path in self._paths:
            del self._outline.get_submodule(path).forward
        del self._outline

    def _listen(self, number: int, *args: Any, **kwargs: Any) -> Tensor:
        rest = dict(kwargs)
        hidden = args[0] if args else rest.pop("hidden_states", None)
        if number != len(self.calls) or not isinstance(hidden, Tensor):
            self.chained = False
        elif number == 0:
            self.hidden = hidden
        elif hidden is not self.hidden:
            self.chained = False
        self.calls.append(Call(tuple(args[1:]), rest))
        if number == self._count - 1 or not self.chained:
            raise _Stop
        return self.hidden


def interned(call: Call, pool: dict[Any, Tensor]) -> Call:
    """The call with one copy of each tensor that occurs again: masks, rotary tables."""

    def intern(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(intern(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        raw = to_raw(value)
        return pool.setdefault((value.shape, value.dtype, xxhash.xxh3_128_digest(raw.data)), value)

    return Call(intern(call.args), {name: intern(value) for name, value in call.kwargs.items()})
