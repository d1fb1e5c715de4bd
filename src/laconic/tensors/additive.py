"""`Additive`: neighbouring weights as the sum of one vector from each of several codebooks."""

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
    PRECISION,
    at_rest,
    check_packed,
    from_rest,
    matrix_shape,
    pack,
    unpack,
)

LOOK_UPS = 512  # inputs times entries up to which looking up beats multiplying
RUN = 64  # codes of a row that are looked up before the next rows'


@dataclass(frozen=True, eq=False)
class Additive(Coded):
    """A weight of R rows and C columns (all but the first dimension) in AQLM's format.

    `value[r, g * v : g * v + g] = scale[r] * sum_m codebooks[m, code[r, v, m]]`, computed in fp32,
    summed from the first codebook to the last. A last vector that is longer than its row is cut.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        packed: (ceil(R * V * M * bits / 8),) uint8, V = ceil(C / g): vector by vector, its M codes
            side by side.
        codebooks: (M, 2 ** bits, g) bfloat16, float16 or float32; M at least 1, bits 1 to 16.
        scale: (R,) bfloat16, float16 or float32.

    Source: AQLM (Egiazarian et al., 2024, arXiv 2401.06118), section 3.
    """

    shape: torch.Size
    dtype: torch.dtype
    packed: Tensor
    codebooks: Tensor
    scale: Tensor

    kind = "additive"

    def __post_init__(self) -> None:
        if self.codebooks.ndim != 3 or 0 in self.codebooks.shape:
            raise UsageError(f"codebooks must be (M, K, g), found {tuple(self.codebooks.shape)}")
        entries = self.codebooks.shape[1]
        if entries != 2**self.bits or not 1 <= self.bits <= 16:
            raise UsageError(f"codebooks have 2 to 65536 entries, a power of two, found {entries}")
        rows, vectors = self._grid
        check_packed(self.packed, rows * vectors * self.codebooks.shape[0], self.bits)
        if tuple(self.scale.shape) != (rows,):
            raise UsageError(f"scale must be ({rows},), found {tuple(self.scale.shape)}")

    @classmethod
    def from_codes(
        cls, codes: Tensor, codebooks: Tensor, scale: Tensor,
        *, shape: torch.Size, dtype: torch.dtype,
    ) -> Self:  # fmt: skip
        """From codes (R, V, M), codebooks and scales shaped as the attributes say."""
        bits = codebooks.shape[1].bit_length() - 1
        return cls(shape, dtype, pack(codes.int(), bits), codebooks, scale)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of a code."""
        return self.codebooks.shape[1].bit_length() - 1

    @property
    def code_per_weight(self) -> bool:
        return False

    @property
    def format(self) -> str:
        count, _, length = self.codebooks.shape
        return f"additive {count}x{self.bits} g{length}"

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows, and vectors in each."""
        rows, columns = matrix_shape(self.shape)
        return rows, -(-columns // self.codebooks.shape[2])

    def codes(self) -> Tensor:
        """The codes (R, V, M), uint8 or int32."""
        shape = (*self._grid, self.codebooks.shape[0])
        return unpack(self.packed, self.bits, torch.Size(shape).numel()).reshape(shape)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`; for a few inputs on a CPU by looking up products with all vectors."""
        inputs = x.shape[:-1].numel()
        few = inputs * self.codebooks.shape[1] <= min(LOOK_UPS, self.shape[0])
        if not few or x.device.type != "cpu" or x.requires_grad:
            return super().matmul(x, bias)
        out = torch.zeros(inputs, self.shape[0])
        (rows, vectors), length = self._grid, self.codebooks.shape[2]
        padded = torch.zeros(inputs, vectors * length)
        padded[:, : self.shape[1]] = x.reshape(inputs, self.shape[1])
        entries = self.codebooks.to(PRECISION).reshape(-1, length)  # of all codebooks
        products = padded.reshape(-1, length) @ entries.T  # (inputs V, M K)
        products = products.reshape(inputs, vectors * len(self.codebooks), self.codebooks.shape[1])
        _look_up_products(self.packed.numpy(), self.bits, products.numpy(), out.numpy())
        out *= self.scale.to(PRECISION)
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], rows).to(x.dtype)

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        _, vectors = self._grid
        out = np.empty((len(index), vectors * self.codebooks.shape[2]), np.float32)
        codebooks = self.codebooks.to(PRECISION).numpy()
        _add_up(
            self.packed.numpy(), self.bits, codebooks, self.scale.to(PRECISION).numpy(), index, out
        )
        return np.ascontiguousarray(out[:, : matrix_shape(self.shape)[1]])

    def _dense_by_torch(self) -> Tensor:
        rows, columns = matrix_shape(self.shape)
        codes, codebooks = self.codes().int(), self.codebooks.to(PRECISION)
        total = codebooks[0][codes[:, :, 0]]  # (R, V, g)
        for m in range(1, len(codebooks)):
            total = total + codebooks[m][codes[:, :, m]]
        values = total.reshape(rows, self._grid[1] * codebooks.shape[2])[:, :columns]
        return values * self.scale.to(PRECISION).unsqueeze(1)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        from laconic.tensors.triton_products import vector_product

        return vector_product(
            x, self.packed, self.bits, self.codebooks, self.shape[0], len(self.codebooks), bias,
            scale=self.scale.unsqueeze(1),
        )  # fmt: skip

    def state(self) -> State:
        meta = {"shape": list(self.shape), "dtype": name_of(self.dtype)}
        arrays = {"codes": at_rest(self.codes(), self.bits), "codebooks": self.codebooks}
        return State(self.kind, meta, arrays | {"scale": self.scale})

    @classmethod
    def from_state(cls, state: State) -> Self:
        codebooks = state.arrays["codebooks"]
        codes = from_rest(state.arrays["codes"], codebooks.shape[1])
        return cls(
            torch.Size(state.meta["shape"]), BY_NAME[state.meta["dtype"]],
            pack(codes, codebooks.shape[1].bit_length() - 1), codebooks, state.arrays["scale"],
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _add_up(packed, bits, codebooks, scale, index, out):  # type: ignore[no-untyped-def]
    count, _, length = codebooks.shape
    codes = np.empty(out.shape[1] // length * count, np.uint16)
    for i in range(index.size):
        row = index[i]
        unpack_run(packed, row * codes.size, bits, codes)
        for v in range(out.shape[1] // length):
            for d in range(length):
                total = codebooks[0, codes[v * count], d]
                for m in range(1, count):
                    total += codebooks[m, codes[v * count + m], d]
                out[i, v * length + d] = total * scale[row]


@njit(cache=True, nogil=True)
def _look_up_products(packed, bits, products, out):  # type: ignore[no-untyped-def]
    """Adds to out (inputs, R) what the S codes of each row name in products (inputs, S, K).

    So many codes at a time that their products stay in the cache. Codes of a byte are read where they are.
    """
    width, rows = products.shape[1], out.shape[1]
    codes = np.zeros((4, RUN), np.uint16)
    for first in range(0, width, RUN):
        count = min(RUN, width - first)
        for row in range(0, rows, 4):
            if bits == 8:
                here = packed[: rows * width].reshape(rows, width)[row : row + 4]
                _add_products(here[:, first : first + count], products[:, first:], out[:, row:])
            else:
                few = min(4, rows - row)
                for r in range(few):
                    unpack_run(packed, (row + r) * width + first, bits, codes[r, :count])
                _add_products(codes[:few, :count], products[:, first:], out[:, row:])


@njit(cache=True, nogil=True, inline="always")
def _add_products(codes, products, out):  # type: ignore[no-untyped-def]
    """Adds for up to four rows, whose sums do not wait for each other."""
    last = len(codes) - 1
    for i in range(len(products)):
        a = b = c = d = np.float32(0)
        for j in range(codes.shape[1]):
            named = products[i, j]
            a += named[codes[0, j]]
            b += named[codes[min(1, last), j]]
            c += named[codes[min(2, last), j]]
            d += named[codes[min(3, last), j]]
        out[i, 0] += a
        if last >= 1:
            out[i, 1] += b
        if last >= 2:
            out[i, 2] += c
        if last >= 3:
            out[i, 3] += d


register_kind(Additive)
