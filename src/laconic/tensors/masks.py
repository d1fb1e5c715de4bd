"""Which weights are kept: any (`Bitmask`) or whole channels (`ChannelMask`); n of every m are `NofM`."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.errors import CorruptFile, UsageError
from laconic.tensors.compressed import State, Stateful, register_kind
from laconic.tensors.packing import check_packed, check_whole, pack, unpack

CHUNK = 4096  # weights whose places are listed at a time


class Mask(Stateful):
    """Which weights of a tensor are kept.

    Attributes:
        shape: of the tensor.
    """

    shape: torch.Size

    @property
    @abstractmethod
    def kept_shape(self) -> tuple[int, ...]:
        """The shape in which the kept values, row by row, form a tensor of their own."""

    @property
    @abstractmethod
    def format(self) -> str:
        """A short name for reports, such as `2:4`."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Whether each weight is kept, (*shape) bool."""

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return math.prod(self.kept_shape)

    def gather(self, x: Tensor) -> Tensor:
        """The kept values of `x` (*shape), row by row, (*kept_shape)."""
        return x[self.dense()].reshape(self.kept_shape)

    def scatter(self, values: Tensor) -> Tensor:
        """The kept `values` (any shape, row by row) at their places, zero elsewhere, (*shape)."""
        out = values.new_zeros(self.shape)
        return out.masked_scatter_(self.dense(), values)


@dataclass(frozen=True, eq=False)
class Bitmask(Mask):
    """Any weights at all: one bit for each in memory, about the entropy of that at rest.

    Attributes:
        shape: of the tensor.
        packed: (ceil(n / 8),) uint8, row by row, the lowest bit first.
        count: bits that are set.

    Example:
        >>> mask = Bitmask.of(torch.tensor([[True, False, True]]))
        >>> mask.scatter(torch.tensor([5.0, 7.0]))
        tensor([[5., 0., 7.]])
    """

    shape: torch.Size
    packed: Tensor
    count: int

    kind = "bitmask"

    def __post_init__(self) -> None:
        check_packed(self.packed, self.shape.numel(), 1)
        check_whole("count", self.count, 0, self.shape.numel())

    @classmethod
    def of(cls, keep: Tensor) -> Self:
        """From booleans (*shape)."""
        return cls(keep.shape, pack(keep.byte(), 1), int(keep.sum()))

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return (1, self.count)

    @property
    def format(self) -> str:
        return f"{100 * self.count / max(1, self.shape.numel()):.3g} % kept"

    def dense(self) -> Tensor:
        return unpack(self.packed, 1, self.shape.numel()).bool().reshape(self.shape)

    def scatter(self, values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            return super().scatter(values)
        out = values.new_zeros(self.shape)
        _scatter_bits(self.packed.numpy(), words(values), words(out))
        return out

    def state(self) -> State:
        meta = {"shape": list(self.shape), "count": self.count}
        return State(self.kind, meta, {"packed": self.packed})

    @classmethod
    def from_state(cls, state: State) -> Self:
        mask = cls(torch.Size(state.meta["shape"]), state.arrays["packed"], state.meta["count"])
        if int(mask.dense().sum()) != mask.count:
            raise CorruptFile(f"a mask of {mask.count} weights keeps another number of them")
        return mask


@dataclass(frozen=True, eq=False)
class ChannelMask(Mask):
    """Whole rows (outputs) and columns (input channels) of a weight (out, in, ...).

    Attributes:
        shape: of the tensor.
        rows: (out,) bool.
        columns: (in,) bool.
        counts: how many of each are kept.

    Example:
        >>> mask = ChannelMask.of((2, 3), columns=torch.tensor([True, False, True]))
        >>> mask.kept_shape
        (2, 2)
    """

    shape: torch.Size
    rows: Tensor
    columns: Tensor
    counts: tuple[int, int]

    kind = "channel mask"

    def __post_init__(self) -> None:
        sizes = (self.rows.numel(), self.columns.numel())
        if len(self.shape) < 2 or sizes != tuple(self.shape[:2]):
            raise UsageError(f"{sizes} channels do not fit a weight of shape {tuple(self.shape)}")

    @classmethod
    def of(
        cls, shape: tuple[int, ...], *, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> Self:
        """From the rows and columns that are kept, bool; all where None."""
        if len(shape) < 2:
            raise UsageError(f"a tensor of shape {tuple(shape)} has no rows and columns")
        given = rows if rows is not None else columns
        all_ = partial(torch.ones, dtype=torch.bool, device=None if given is None else given.device)
        keep_rows = all_(shape[0]) if rows is None else rows.bool()
        keep_columns = all_(shape[1]) if columns is None else columns.bool()
        counts = (int(keep_rows.sum()), int(keep_columns.sum()))
        return cls(torch.Size(shape), keep_rows, keep_columns.to(keep_rows.device), counts)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return (*self.counts, *self.shape[2:])

    @property
    def format(self) -> str:
        return f"{self.counts[0]} x {self.counts[1]} channels"

    def dense(self) -> Tensor:
        keep = self.rows[:, None] & self.columns
        return keep.reshape(*keep.shape, *[1] * (len(self.shape) - 2)).expand(self.shape)

    def scatter(self, values: Tensor) -> Tensor:
        out = values.new_zeros(self.shape)
        index = self.rows.nonzero(), self.columns.nonzero().squeeze(1)
        out[index] = values.reshape(self.kept_shape)
        return out

    def state(self) -> State:
        return State(
            self.kind, {"shape": list(self.shape)},
            {"rows": pack(self.rows.byte(), 1), "columns": pack(self.columns.byte(), 1)},
        )  # fmt: skip

    @classmethod
    def from_state(cls, state: State) -> Self:
        shape = torch.Size(state.meta["shape"])
        rows = unpack(state.arrays["rows"], 1, shape[0])
        return cls.of(shape, rows=rows, columns=unpack(state.arrays["columns"], 1, shape[1]))


def words(values: Tensor) -> np.ndarray:
    """`values` in one row, as integers of the same width: numpy knows no bfloat16."""
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    found: np.ndarray = values.detach().reshape(-1).view(word).numpy()
    return found


@njit(cache=True, nogil=True)
def _scatter_bits(packed, values, out):  # type: ignore[no-untyped-def]
    index = np.empty(CHUNK, np.int64)  # first where, then what: no branch on bits that are noise
    taken = 0
    for start in range(0, out.size, CHUNK):
        count = 0
        for i in range(start, min(start + CHUNK, out.size)):
            index[count] = i
            count += packed[i >> 3] >> (i & 7) & 1
        for k in range(min(count, values.size - taken)):
            out[index[k]] = values[taken + k]
        taken += count


for _kind in (Bitmask, ChannelMask):
    register_kind(_kind)
