"""`Grouped`: unsigned integer codes of 2 to 8 bits with a scale (and zero point) for each group."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.coding.bitpack import unpack_run
from laconic.errors import UsageError
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import State, register_kind
from laconic.tensors.dtypes import BY_NAME, name_of
from laconic.tensors.packing import (
    at_rest,
    check_packed,
    check_whole,
    matrix_shape,
    pack,
    pack_at_rest,
    spread,
    unpack,
)


@dataclass(frozen=True, eq=False)
class Grouped(Coded):
    """A weight of R rows and C columns (all but the first dimension) on uniform grids.

    `value[r, c] = (code[r, c] - zero[r, c // group]) * scale[r, c // group]`, computed in fp32. The
    last group of a row may be ragged.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        bits: of a code, 2 to 8.
        group: columns a group; at most C.
        packed: (ceil(R * C * bits / 8),) uint8, the codes, row by row.
        scale: (R, G) bfloat16, or (1, 1) where one scale serves the whole tensor.
        zero: same shape, uint8; None for a symmetric grid, whose zero is `2 ** (bits - 1)`.
    """

    shape: torch.Size
    dtype: torch.dtype
    bits: int
    group: int
    packed: Tensor
    scale: Tensor
    zero: Tensor | None = None

    kind = "grouped"

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        check_whole("bits", self.bits, 2, 8)
        check_whole("group", self.group, 1)
        check_packed(self.packed, rows * columns, self.bits)
        expected = (rows, -(-columns // self.group))
        if tuple(self.scale.shape) not in (expected, (1, 1)):
            raise UsageError(f"scale must be {expected} or (1, 1), found {tuple(self.scale.shape)}")
        if self.zero is not None and self.zero.shape != self.scale.shape:
            raise UsageError("zero must have the shape of scale")

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero: Tensor | None,
        *, bits: int, group: int, dtype: torch.dtype,
    ) -> Self:  # fmt: skip
        """From unsigned codes (*shape), scales and zero points shaped as the attributes say."""
        packed = pack(codes.to(torch.uint8), bits)
        zero = None if zero is None else zero.to(torch.uint8)
        return cls(codes.shape, dtype, bits, group, packed, scale.to(torch.bfloat16), zero)

    @property
    def format(self) -> str:
        rows, columns = matrix_shape(self.shape)
        per = f"g{self.group}" if self.group < columns else "row"
        if self.scale.numel() == 1 < rows:
            per = "tensor"
        return f"int{self.bits} {per}{'' if self.zero is None else ' asymmetric'}"

    def codes(self) -> Tensor:
        """The codes (*shape), uint8."""
        return unpack(self.packed, self.bits, self.numel).reshape(self.shape)

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), matrix_shape(self.shape)[1]), np.float32)
        zero = np.zeros((0, 0), np.uint8) if self.zero is None else self.zero.numpy()
        scale = self.scale.float().numpy()
        _dequantize(self.packed.numpy(), self.bits, self.group, scale, zero, index, out)
        return out

    def _dense_by_torch(self) -> Tensor:
        return self.at(self.codes().reshape(matrix_shape(self.shape)).float(), self.scale)

    def at(self, codes: Tensor, scale: Tensor) -> Tensor:
        """What `codes` (R, C) float32 stand for, with `scale` in place of its own; differentiable in both."""
        return (codes - self.zeros()) * spread(scale.float(), codes.shape[1], self.group)

    def zeros(self) -> Tensor | int:
        """Codes of 0: one, or (R, C) float32."""
        if self.zero is None:
            return int(2 ** (self.bits - 1))
        return spread(self.zero.float(), matrix_shape(self.shape)[1], self.group)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        from laconic.tensors.triton_products import grouped_product

        return grouped_product(
            x, self.packed, self.bits, self.group, self.scale, self.zero, self.shape[0], bias
        )

    def state(self) -> State:
        meta = {
            "shape": list(self.shape),
            "dtype": name_of(self.dtype),
            "bits": self.bits,
            "group": self.group,
        }
        arrays = {"codes": at_rest(self.codes(), self.bits), "scale": self.scale}
        return State(self.kind, meta, arrays | ({} if self.zero is None else {"zero": self.zero}))

    @classmethod
    def from_state(cls, state: State) -> Self:
        meta = state.meta
        packed = pack_at_rest(state.arrays["codes"], meta["bits"])
        return cls(
            torch.Size(meta["shape"]), BY_NAME[meta["dtype"]], meta["bits"], meta["group"],
            packed, state.arrays["scale"], state.arrays.get("zero"),
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _dequantize(packed, bits, group, scale, zero, index, out):  # type: ignore[no-untyped-def]
    columns = out.shape[1]
    codes = np.empty(columns, np.uint8)
    for i in range(index.size):
        row = index[i]
        unpack_run(packed, row * columns, bits, codes)
        owner = row if scale.shape[0] > 1 else 0
        for start in range(0, columns, group):
            g = start // group if scale.shape[1] > 1 else 0
            step = scale[owner, g]
            offset = np.float32(zero[owner, g]) if zero.size else np.float32(1 << (bits - 1))
            for column in range(start, min(start + group, columns)):
                out[i, column] = (np.float32(codes[column]) - offset) * step


register_kind(Grouped)
