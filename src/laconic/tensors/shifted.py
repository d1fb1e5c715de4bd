"""`Shifted`: signed codes in rectangular blocks, each with a power of two and, if it helps, a middle."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.coding.bitpack import unpack_run
from laconic.errors import UsageError
from laconic.numerics.integers.shifts import FARTHEST
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import State, register_kind
from laconic.tensors.dtypes import BY_NAME, name_of
from laconic.tensors.packing import (
    PRECISION,
    at_rest,
    check_packed,
    check_whole,
    matrix_shape,
    pack,
    pack_at_rest,
    unpack,
)


@dataclass(frozen=True, eq=False)
class Shifted(Coded):
    """A weight of R rows and C columns (all but the first dimension) in blocks with shifts e and middles z.

    `value = code 2^-e + z`, computed in fp32, with codes -(2^(bits-1) - 1) .. 2^(bits-1) - 1. Blocks at the
    edges are ragged.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        bits: of a code, 2 to 16.
        rows_per_block: rows of a block.
        columns_per_block: columns of a block.
        packed: (ceil(R * C * bits / 8),) uint8, `code + 2^(bits-1)`, row by row.
        shift: (I, J) int8, one for each block.
        middle: the same shape, float16; None where all are 0.

    Source: BCT (Dong et al., 2023); 24 bits a block are its shift and its middle.
    """

    shape: torch.Size
    dtype: torch.dtype
    bits: int
    rows_per_block: int
    columns_per_block: int
    packed: Tensor
    shift: Tensor
    middle: Tensor | None = None

    kind = "shift-block"

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        check_whole("bits", self.bits, 2, 16)
        check_whole("rows_per_block", self.rows_per_block, 1)
        check_whole("columns_per_block", self.columns_per_block, 1)
        check_packed(self.packed, rows * columns, self.bits)
        expected = (-(-rows // self.rows_per_block), -(-columns // self.columns_per_block))
        if tuple(self.shift.shape) != expected or self.shift.dtype != torch.int8:
            raise UsageError(
                f"shift must be int8 of shape {expected}, found {self.shift.dtype} "
                f"{tuple(self.shift.shape)}"
            )
        if self.middle is not None and self.middle.shape != self.shift.shape:
            raise UsageError("middle must have the shape of shift")

    @classmethod
    def from_codes(
        cls, codes: Tensor, shift: Tensor, middle: Tensor | None,
        *, bits: int, rows: int, columns: int, dtype: torch.dtype,
    ) -> Self:  # fmt: skip
        """From signed codes (*shape), shifts and middles shaped as the attributes say."""
        stored = (codes.to(torch.int32) + 2 ** (bits - 1)).to(
            torch.uint8 if bits <= 8 else torch.uint16
        )
        half = None if middle is None else middle.to(torch.float16)
        return cls(
            codes.shape, dtype, bits, rows, columns, pack(stored, bits), shift.to(torch.int8), half
        )

    @property
    def format(self) -> str:
        return f"int{self.bits} shift {self.rows_per_block}x{self.columns_per_block}"

    def codes(self) -> Tensor:
        """The signed codes (*shape), int32."""
        stored = unpack(self.packed, self.bits, self.numel).int()
        return stored.sub_(1 << (self.bits - 1)).reshape(self.shape)

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), matrix_shape(self.shape)[1]), np.float32)
        scale = torch.exp2(-self.shift.to(PRECISION))
        middle = torch.zeros_like(scale) if self.middle is None else self.middle.to(PRECISION)
        block = self.rows_per_block, self.columns_per_block
        _dequantize(
            self.packed.numpy(), self.bits, *block, scale.numpy(), middle.numpy(), index, out
        )
        return out

    def _dense_by_torch(self) -> Tensor:
        shape = matrix_shape(self.shape)
        block = self.rows_per_block, self.columns_per_block
        scale = spread_blocks(torch.exp2(-self.shift.to(PRECISION)), shape, block)
        value = self.codes().reshape(shape).to(PRECISION) * scale
        if self.middle is None:
            return value
        return value + spread_blocks(self.middle.to(PRECISION), shape, block)

    def state(self) -> State:
        meta = {
            "shape": list(self.shape), "dtype": name_of(self.dtype), "bits": self.bits,
            "block": [self.rows_per_block, self.columns_per_block],
        }  # fmt: skip
        stored = at_rest(unpack(self.packed, self.bits, self.numel), self.bits)
        arrays = {"codes": stored, "shift": self.shift}
        return State(
            self.kind, meta, arrays | ({} if self.middle is None else {"middle": self.middle})
        )

    @classmethod
    def from_state(cls, state: State) -> Self:
        meta, shift, middle = state.meta, state.arrays["shift"], state.arrays.get("middle")
        codes, shape = state.arrays["codes"], torch.Size(meta["shape"])
        if codes.numel() != shape.numel():
            raise ValueError(f"{codes.numel()} codes for a weight of shape {tuple(shape)}")
        if shift.numel() and int(shift.to(torch.int32).abs().max()) > FARTHEST:
            raise ValueError(f"a shift is beyond {FARTHEST}")
        if middle is not None and not torch.isfinite(middle).all():
            raise ValueError("a middle is not finite")
        rows, columns = meta["block"]
        return cls(
            shape, BY_NAME[meta["dtype"]], meta["bits"], rows, columns,
            pack_at_rest(codes, meta["bits"]), shift, middle,
        )  # fmt: skip


def spread_blocks(per_block: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """A value for each block (I, J) as one for each weight (R, C)."""
    tall = per_block.repeat_interleave(block[0], 0)[: shape[0]]
    return tall.repeat_interleave(block[1], 1)[:, : shape[1]]


@njit(cache=True, nogil=True)
def _dequantize(packed, bits, tall, wide, scale, middle, index, out):  # type: ignore[no-untyped-def]
    columns = out.shape[1]
    codes = np.empty(columns, np.uint16)
    offset = 1 << (bits - 1)
    for i in range(index.size):
        row = index[i]
        unpack_run(packed, row * columns, bits, codes)
        for start in range(0, columns, wide):
            step, z = scale[row // tall, start // wide], middle[row // tall, start // wide]
            for column in range(start, min(start + wide, columns)):
                out[i, column] = np.float32(np.int64(codes[column]) - offset) * step + z


register_kind(Shifted)
