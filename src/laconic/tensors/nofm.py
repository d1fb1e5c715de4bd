"""Masks that keep n of every m neighbours in a row."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.errors import CorruptFile, UsageError
from laconic.tensors.compressed import State, register_kind
from laconic.tensors.masks import Mask, words
from laconic.tensors.packing import (
    at_rest,
    check_packed,
    check_whole,
    from_rest,
    matrix_shape,
    pack,
    unpack,
)

LONGEST_RUN = 16  # columns that share a pattern


@dataclass(frozen=True, eq=False)
class NofM(Mask):
    """n of every m neighbours in a row, kept as the number of their pattern among all C(m, n).

    A ragged last run of w < m columns keeps min(n, w).

    Attributes:
        shape: of the tensor.
        n: weights that are kept of a run.
        m: columns a run, at most 16.
        packed: pattern numbers in ceil(log2 C(m, n)) bits, row by row: 3 for 2:4, 7 for 4:8.

    Example:
        >>> mask = NofM.of(torch.tensor([[True, False, True, False]]), 2, 4)
        >>> mask.kept_shape, mask.dense()
        ((1, 2), tensor([[ True, False,  True, False]]))
    """

    shape: torch.Size
    n: int
    m: int
    packed: Tensor

    kind = "n of m"

    def __post_init__(self) -> None:
        _check_run(self.n, self.m)
        check_packed(self.packed, math.prod(self._runs), self.bits)

    @classmethod
    def of(cls, keep: Tensor, n: int, m: int) -> Self:
        """From booleans (*shape); `UsageError` if a run does not keep its n."""
        _check_run(n, m)
        rows, columns = matrix_shape(keep.shape)
        ragged, width = -columns % m, columns % m
        tail = min(n, width) + torch.arange(ragged, device=keep.device) < n  # behind the row's end
        filled = torch.cat([keep.reshape(rows, columns), tail.expand(rows, ragged)], dim=1)
        runs = filled.reshape(rows, -(-columns // m), m)
        if not bool((runs.sum(-1) == n).all()):
            raise UsageError(f"the mask is not {n}:{m}: a run keeps another number of weights")
        weight = 2 ** torch.arange(m, device=keep.device)
        values = (_patterns(n, m).to(keep.device) * weight).sum(-1)
        numbers = torch.searchsorted(values, (runs * weight).sum(-1), out_int32=True)
        return cls(keep.shape, n, m, pack(numbers, _bits(n, m)))

    @property
    def bits(self) -> int:
        """Bits of a pattern's number."""
        return _bits(self.n, self.m)

    @property
    def _runs(self) -> tuple[int, int]:
        rows, columns = matrix_shape(self.shape)
        return rows, -(-columns // self.m)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        rows, columns = matrix_shape(self.shape)
        return rows, columns // self.m * self.n + min(self.n, columns % self.m)

    @property
    def format(self) -> str:
        return f"{self.n}:{self.m}"

    def dense(self) -> Tensor:
        rows, runs = self._runs
        patterns = _patterns(self.n, self.m).to(self.packed.device)
        keep = patterns[self._numbers().int()].reshape(rows, runs * self.m)
        return keep[:, : matrix_shape(self.shape)[1]].reshape(self.shape)

    def scatter(self, values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            return super().scatter(values)
        out = values.new_zeros(matrix_shape(self.shape))
        numbers = self._numbers().reshape(self._runs).numpy()
        places = words(out).reshape(out.shape)
        _scatter_runs(numbers, _positions(self.n, self.m), self.m, words(values), places)
        return out.reshape(self.shape)

    def _numbers(self) -> Tensor:
        return unpack(self.packed, self.bits, math.prod(self._runs))

    def state(self) -> State:
        meta = {"shape": list(self.shape), "n": self.n, "m": self.m}
        return State(self.kind, meta, {"patterns": at_rest(self._numbers(), self.bits)})

    @classmethod
    def from_state(cls, state: State) -> Self:
        shape, n, m = torch.Size(state.meta["shape"]), state.meta["n"], state.meta["m"]
        _check_run(n, m)
        numbers = from_rest(state.arrays["patterns"], math.comb(m, n))
        mask = cls(shape, n, m, pack(numbers, _bits(n, m)))
        if int(mask.dense().sum()) != mask.kept:
            raise CorruptFile(f"a last run of an {n}:{m} mask keeps another number of weights")
        return mask


def _check_run(n: int, m: int) -> None:
    check_whole("m of n:m", m, 1, LONGEST_RUN)
    check_whole("n of n:m", n, 1, m)


def _bits(n: int, m: int) -> int:
    return max(1, (math.comb(m, n) - 1).bit_length())


@cache
def _patterns(n: int, m: int) -> Tensor:
    """All masks of m bits with n set, in the order of their values, (C(m, n), m) bool."""
    bits = (torch.arange(2**m).unsqueeze(1) >> torch.arange(m) & 1).bool()
    return bits[bits.sum(1) == n]


@cache
def _positions(n: int, m: int) -> np.ndarray:
    """Where the bits of each pattern are, (C(m, n), n) uint8."""
    return _patterns(n, m).nonzero()[:, 1].reshape(-1, n).byte().numpy()


@njit(cache=True, nogil=True)
def _scatter_runs(numbers, positions, m, values, out):  # type: ignore[no-untyped-def]
    taken = 0
    for row in range(numbers.shape[0]):
        for run in range(numbers.shape[1]):
            width = min(m, out.shape[1] - run * m)
            for k in range(min(width, positions.shape[1])):
                place = positions[numbers[row, run], k]
                if place < width and taken < values.size:
                    out[row, run * m + place] = values[taken]
                taken += 1


register_kind(NofM)
