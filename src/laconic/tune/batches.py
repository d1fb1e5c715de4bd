"""What is trained on: batches by their number in the run, so that a resumed run sees the same ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from laconic.errors import DataError, UsageError


@runtime_checkable
class Batches(Protocol):
    """Batches of a run; `at` is a pure function of the number."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def at(self, number: int) -> Any:
        """Batch `number` of the run, from 0, without end."""
        ...


class InOrder:
    """The same batches in the same order, again and again.

    Args:
        batches: at least one; a list, or anything with a length that can be indexed.

    Raises:
        DataError: there are none.

    Example:
        >>> InOrder("ab").at(3)
        'b'
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        if not hasattr(batches, "__getitem__") or not hasattr(batches, "__len__"):
            raise DataError(
                f"batches need a length and an index, to be found again after an interruption; a "
                f"{type(batches).__name__} has not: make a list of it, or give Shuffled(dataset, size)"
            )
        if not len(batches):
            raise DataError("there are no batches to train on")
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def at(self, number: int) -> Any:
        """Batch `number` modulo their count."""
        return self._batches[number % len(self._batches)]


class Shuffled:
    """Examples in batches, in another order each epoch; the tail that fills no batch is left out.

    Args:
        examples: a tensor (N, ...), a mapping of such tensors, or a sequence of examples.
        size: examples in a batch, at least 1; all of them where there are fewer.
        seed: of the orders.
        collate: makes a batch of a list of examples; torch's default. Not used for tensors.

    Raises:
        DataError: there are no examples.
        UsageError: size is below 1.

    Example:
        >>> batches = Shuffled(torch.arange(6), 3, seed=1)
        >>> torch.cat([batches.at(0), batches.at(1)]).sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self, examples: Any, size: int, *, seed: int = 0,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:  # fmt: skip
        first = next(iter(examples.values())) if isinstance(examples, Mapping) else examples
        self._count = len(first)
        if not self._count:
            raise DataError("there are no examples to train on")
        if size < 1:
            raise UsageError(f"a batch has at least 1 example, found size={size}")
        self._examples, self._size, self._seed = examples, min(size, self._count), seed
        self._collate, self._epoch, self._order = collate, -1, torch.empty(0)

    def __len__(self) -> int:
        return self._count // self._size

    def at(self, number: int) -> Any:
        """Batch `number` of the run."""
        epoch, place = divmod(number, len(self))
        if epoch != self._epoch:
            draw = torch.Generator().manual_seed(mixed(self._seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self._count, generator=draw)
        return self._take(self._order[place * self._size : (place + 1) * self._size])

    def _take(self, index: Tensor) -> Any:
        if isinstance(self._examples, Tensor):
            return self._examples[index.to(self._examples.device)]
        if isinstance(self._examples, Mapping):
            return {name: value[index.to(value.device)] for name, value in self._examples.items()}
        return self._collate([self._examples[i] for i in index.tolist()])


def mixed(*numbers: int) -> int:
    """One seed from several numbers of at least 0, without visible relation between near ones.

    Example:
        >>> mixed(0, 1) == mixed(0, 1) != mixed(1, 0)
        True
    """
    state = np.random.SeedSequence([int(number) for number in numbers])
    return int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with all tensors in it on `device`: within mappings, lists, tuples.

    Example:
        >>> to_device({"x": [torch.ones(1)]}, torch.device("meta"))["x"][0].device.type
        'meta'
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
