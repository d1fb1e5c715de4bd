"""`Binary`: weights as sums of scaled signs, so that multiplying takes additions alone."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import State, register_kind
from laconic.tensors.dtypes import BY_NAME, name_of
from laconic.tensors.packing import PRECISION, at_rest, check_whole, from_rest, matrix_shape, spread

FEW_INPUTS = 2  # up to which looking up beats multiplying
WEIGHT_OF_BIT = tuple(1 << bit for bit in range(8))


@dataclass(frozen=True, eq=False)
class Binary(Coded):
    """A weight of R rows and C columns (all but the first dimension) in binary coding.

    `value[r, c] = offset[r, c // group] + sum_i alpha[i, r, c // group] * sign_i[r, c]` with signs of
    -1 and 1, computed in fp32, summed from the first plane to the last.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        group: columns a group, a multiple of 8 or all of them.
        planes: (q, R, ceil(C / 8)) uint8, q in 1..8: a bit for each sign, 1 for +1, the lowest bit
            first; every row starts on a byte.
        alpha: (q, R, G) bfloat16, float16 or float32.
        offset: (R, G), or None.

    Source: AlphaTuning (Kwon et al., 2022, arXiv 2210.03858), section 3.
    """

    shape: torch.Size
    dtype: torch.dtype
    group: int
    planes: Tensor
    alpha: Tensor
    offset: Tensor | None = None

    kind = "binary"

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        check_whole("group", self.group, 1)
        if self.group % 8 and self.group < columns:
            raise UsageError(f"group must be a multiple of 8 or the row, found {self.group}")
        if self.planes.dtype != torch.uint8 or self.planes.ndim != 3 or not 1 <= self.bits <= 8:
            raise UsageError(
                f"planes must be (1..8, R, bytes) uint8, found {self.planes.dtype} "
                f"{tuple(self.planes.shape)}"
            )
        if tuple(self.planes.shape[1:]) != (rows, -(-columns // 8)):
            raise UsageError(f"planes of {tuple(self.planes.shape)} do not fill {self.shape}")
        groups = -(-columns // self.group)
        if tuple(self.alpha.shape) != (self.bits, rows, groups):
            raise UsageError(
                f"alpha must be {(self.bits, rows, groups)}, found {tuple(self.alpha.shape)}"
            )
        if self.offset is not None and tuple(self.offset.shape) != (rows, groups):
            raise UsageError(f"offset must be {(rows, groups)}, found {tuple(self.offset.shape)}")

    @classmethod
    def from_codes(
        cls, codes: Tensor, alpha: Tensor, offset: Tensor | None,
        *, group: int, dtype: torch.dtype,
    ) -> Self:  # fmt: skip
        """From codes (*shape) whose bit i is the sign of plane i, and scales as above."""
        rows, columns = matrix_shape(codes.shape)
        padded = F.pad(codes.reshape(rows, columns).to(torch.uint8), (0, -columns % 8))
        eights = padded.reshape(rows, -(-columns // 8), 8)
        weight = torch.tensor(WEIGHT_OF_BIT, dtype=torch.uint8, device=codes.device)
        planes = [
            ((eights >> i & 1) * weight).sum(-1, dtype=torch.uint8) for i in range(len(alpha))
        ]
        return cls(codes.shape, dtype, group, torch.stack(planes), alpha, offset)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Planes."""
        return self.planes.shape[0]

    @property
    def format(self) -> str:
        columns = matrix_shape(self.shape)[1]
        per = f"g{self.group}" if self.group < columns else "row"
        return f"binary{self.bits} {per}{'' if self.offset is None else ' offset'}"

    def signs(self) -> Tensor:
        """Whether each sign is +1, (q, R, C) uint8 of 0 and 1."""
        columns = matrix_shape(self.shape)[1]
        shift = torch.arange(8, dtype=torch.uint8, device=self.planes.device)
        bits = self.planes.unsqueeze(-1) >> shift & 1
        return bits.reshape(*self.planes.shape[:2], self.planes.shape[2] * 8)[:, :, :columns]

    def codes(self) -> Tensor:
        """The codes (*shape), uint8; bit i is the sign of plane i."""
        signs = self.signs()
        codes = torch.zeros_like(signs[0])
        for i in range(self.bits):
            codes |= signs[i] << i
        return codes.reshape(self.shape)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`; for one or two inputs on a CPU by looking up sums of eight of them."""
        inputs = x.shape[:-1].numel()
        if inputs > FEW_INPUTS or x.device.type != "cpu" or x.requires_grad:
            return super().matmul(x, bias)
        out = torch.empty(inputs, self.shape[0])
        flat = x.reshape(inputs, self.shape[1]).to(PRECISION)
        offset = torch.zeros(0, 0) if self.offset is None else self.offset.to(PRECISION)
        for number in range(inputs):
            _look_up_sums(
                self.planes.numpy(), self.alpha.to(PRECISION).numpy(), offset.numpy(), self.group,
                flat[number].numpy(), out[number].numpy(),
            )  # fmt: skip
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], self.shape[0]).to(x.dtype)

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), matrix_shape(self.shape)[1]), np.float32)
        offset = torch.zeros(0, 0) if self.offset is None else self.offset.to(PRECISION)
        alpha = self.alpha.to(PRECISION).numpy()
        _add_signs(self.planes.numpy(), alpha, offset.numpy(), self.group, index, out)
        return out

    def _dense_by_torch(self) -> Tensor:
        rows, columns = matrix_shape(self.shape)
        value = torch.zeros(rows, columns, device=self.planes.device)
        if self.offset is not None:
            value += spread(self.offset.to(PRECISION), columns, self.group)
        for signs, alpha in zip(self.signs(), self.alpha.to(PRECISION)):
            value += (2 * signs.to(PRECISION) - 1) * spread(alpha, columns, self.group)
        return value

    def state(self) -> State:
        meta = {"shape": list(self.shape), "dtype": name_of(self.dtype), "group": self.group}
        arrays = {"codes": at_rest(self.codes(), self.bits), "alpha": self.alpha}
        return State(
            self.kind, meta, arrays | ({} if self.offset is None else {"offset": self.offset})
        )

    @classmethod
    def from_state(cls, state: State) -> Self:
        shape, alpha = torch.Size(state.meta["shape"]), state.arrays["alpha"]
        check_whole("planes", alpha.shape[0], 1, 8)  # before 2 ** planes
        codes = from_rest(state.arrays["codes"], 2 ** alpha.shape[0]).reshape(shape)
        return cls.from_codes(
            codes, alpha, state.arrays.get("offset"),
            group=state.meta["group"], dtype=BY_NAME[state.meta["dtype"]],
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _add_signs(planes, alpha, offset, group, index, out):  # type: ignore[no-untyped-def]
    columns, bits = out.shape[1], planes.shape[0]
    eight, low = np.uint64(8), np.uint64(255)
    spread_bits = np.zeros(256, np.uint64)  # bit j of a byte at the foot of byte j
    for byte in range(256):
        for j in range(8):
            spread_bits[byte] |= np.uint64(byte >> j & 1) << np.uint64(8 * j)
    levels = np.empty(1 << bits, np.float32)
    for i in range(index.size):
        row = index[i]
        for start in range(0, columns, group):
            g = start // group
            levels[0] = offset[row, g] if offset.size else 0
            for plane in range(bits):
                step = alpha[plane, row, g]
                for code in range(1 << plane):
                    levels[code + (1 << plane)] = levels[code] + step
                    levels[code] -= step
            stop = min(start + group, columns)
            for b in range(start >> 3, (stop + 7) >> 3):
                codes = np.uint64(0)
                for plane in range(bits):
                    codes |= spread_bits[planes[plane, row, b]] << np.uint64(plane)
                for j in range(min(8, stop - 8 * b)):
                    out[i, 8 * b + j] = levels[codes & low]
                    codes >>= eight


@njit(cache=True, nogil=True)
def _look_up_sums(planes, alpha, offset, group, x, out):  # type: ignore[no-untyped-def]
    eights = planes.shape[2]
    table = np.zeros((eights, 256), np.float32)  # sums of eight inputs for each byte of signs
    total = np.zeros(eights, np.float32)
    for b in range(eights):
        for j in range(min(8, x.size - 8 * b)):
            total[b] += x[8 * b + j]
        table[b, 0] = -total[b]
        for byte in range(1, 256):  # one more input is added than in a sum already known
            low = 0
            while not byte >> low & 1:
                low += 1
            value = x[8 * b + low] if 8 * b + low < x.size else np.float32(0)
            table[b, byte] = table[b, byte & (byte - 1)] + 2 * value
    per_group = -(-min(group, x.size) // 8)
    for row in range(out.size):
        y = np.float32(0)
        for g in range(alpha.shape[2]):
            stop = min(eights, (g + 1) * per_group)
            for plane in range(planes.shape[0]):
                partial = np.float32(0)
                for b in range(g * per_group, stop):
                    partial += table[b, planes[plane, row, b]]
                y += alpha[plane, row, g] * partial
            if offset.size:
                y += offset[row, g] * total[g * per_group : stop].sum()
        out[row] = y


register_kind(Binary)
