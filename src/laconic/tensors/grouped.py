"""`Grouped`: unsigned integer codes of 2 to 8 bits with a scale (and zero point) for each group."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.coding import bitpack
from laconic.coding.bitpack import unpack_run
from laconic.errors import CorruptFile, UsageError
from laconic.tensors.compressed import CompressedTensor, State, checked_index, register_kind
from laconic.tensors.dtypes import BY_NAME, name_of


@dataclass(frozen=True, eq=False)
class Grouped(CompressedTensor):
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
        rows, columns = self._matrix_shape
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits must be in 2..8, found {self.bits}")
        if self.group < 1:
            raise UsageError(f"group must be at least 1, found {self.group}")
        if self.packed.numel() != bitpack.packed_size(rows * columns, self.bits):
            raise UsageError(f"{self.packed.numel()} bytes of codes do not fill {self.shape}")
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
        packed = bitpack.pack(codes.cpu().to(torch.uint8).numpy(), bits)
        zero = None if zero is None else zero.to(torch.uint8)
        return cls(
            codes.shape, dtype, bits, group, torch.from_numpy(packed).to(codes.device),
            scale.to(torch.bfloat16), zero,
        )  # fmt: skip

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        rows = self.shape[0] if self.shape else 1
        return rows, (self.shape.numel() // rows if rows else 0)

    @property
    def format(self) -> str:
        rows, columns = self._matrix_shape
        per = f"g{self.group}" if self.group < columns else "row"
        if self.scale.numel() == 1 < rows:
            per = "tensor"
        return f"int{self.bits} {per}{'' if self.zero is None else ' asymmetric'}"

    def codes(self) -> Tensor:
        """The codes (*shape), uint8."""
        flat = bitpack.unpack(self.packed.cpu().numpy(), self.bits, self.shape.numel())
        return torch.from_numpy(flat).reshape(self.shape).to(self.packed.device)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        rows, _ = self._matrix_shape
        index = np.arange(rows) if self.packed.device.type == "cpu" else None
        return self._rows(index).reshape(self.shape).to(dtype or self.dtype)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if self.packed.device.type != "cpu":
            return self.dense(dtype)[index]
        flat = self._rows(checked_index(index, self._matrix_shape[0]).reshape(-1).numpy())
        return flat.reshape((*index.shape, *self.shape[1:])).to(dtype or self.dtype)

    def _rows(self, index: np.ndarray | None) -> Tensor:
        """(len(index), C) float32; all rows, by torch on the tensor's device, for None."""
        _, columns = self._matrix_shape
        if index is None:
            return self._dense_by_torch()
        out = np.empty((len(index), columns), np.float32)
        zero = np.zeros((0, 0), np.uint8) if self.zero is None else self.zero.numpy()
        scale = self.scale.float().numpy()
        _dequantize(self.packed.numpy(), self.bits, self.group, scale, zero, index, out)
        return torch.from_numpy(out)

    def _dense_by_torch(self) -> Tensor:
        rows, columns = self._matrix_shape
        bit = torch.arange(rows * columns, device=self.packed.device) * self.bits
        padded = torch.cat([self.packed, self.packed.new_zeros(2)]).int()
        window = padded[bit >> 3] | padded[(bit >> 3) + 1] << 8
        codes = (window >> (bit & 7)) & (2**self.bits - 1)
        zero = 2 ** (self.bits - 1) if self.zero is None else self._spread(self.zero, columns)
        value: Tensor = (codes.reshape(rows, columns) - zero) * self._spread(self.scale, columns)
        return value

    def _spread(self, per_group: Tensor, columns: int) -> Tensor:
        """A value for each group, float32, as one for each column; (1, 1) serves all."""
        if per_group.numel() == 1:
            return per_group.float()
        return per_group.float()[:, torch.arange(columns, device=self.packed.device) // self.group]

    def state(self) -> State:
        meta = {
            "shape": list(self.shape),
            "dtype": name_of(self.dtype),
            "bits": self.bits,
            "group": self.group,
        }
        arrays = {"codes": self.codes().reshape(-1), "scale": self.scale}
        return State(self.kind, meta, arrays | ({} if self.zero is None else {"zero": self.zero}))

    @classmethod
    def from_state(cls, state: State) -> Self:
        meta = state.meta
        codes = state.arrays["codes"]
        if codes.numel() and int(codes.max()) >> meta["bits"]:
            raise CorruptFile(f"a code does not fit in {meta['bits']} bits")
        packed = torch.from_numpy(bitpack.pack(codes.numpy(), meta["bits"]))
        return cls(
            torch.Size(meta["shape"]), BY_NAME[meta["dtype"]], meta["bits"], meta["group"],
            packed, state.arrays["scale"], state.arrays.get("zero"),
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        held = {"packed": self.packed, "scale": self.scale}
        return held if self.zero is None else held | {"zero": self.zero}

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        return replace(self, **tensors)  # type: ignore[arg-type]


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
