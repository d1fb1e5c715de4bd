"""`DeadZone`: whole numbers of any size on a uniform grid around a zone that is zero."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.coding.bitpack import unpack_run
from laconic.errors import BadWeights, UsageError
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
    spread,
    unpack,
)

FARTHEST = (1 << 15) - 1  # codes that 16 bits hold with their signs


def dead_zone_codes(x: Tensor, edge: Tensor, step: Tensor) -> Tensor:
    """Where `x` stands on a grid with a dead zone, not rounded.

    `c(x) = x / (2 edge)` within the zone, |x| <= edge, and `sign(x) (1/2 + (|x| - edge) / step)` beyond it:
    continuous, rising, with gradients to all three.

    Args:
        x: any shape.
        edge: half the width of the zone, above 0, broadcast to `x`.
        step: of the grid beyond it, above 0, broadcast to `x`.

    Source: L2 compression (Shi et al., 2023), section 3.2.

    Example:
        >>> x = torch.tensor([0.1, -0.5, 1.5])
        >>> dead_zone_codes(x, torch.tensor(0.5), torch.tensor(1.0))
        tensor([ 0.1000, -0.5000,  1.5000])
    """
    size = x.abs()
    beyond = x.sign() * (0.5 + (size - edge) / step)
    return torch.where(size <= edge, x / (2 * edge), beyond)


def dead_zone_values(codes: Tensor, edge: Tensor, step: Tensor) -> Tensor:
    """Inverse of `dead_zone_codes`: 0 for the code 0, `sign(k) (edge + (|k| - 1/2) step)` for others.

    Args:
        codes: any shape, rounded or not.
        edge: half the width of the zone, broadcast to `codes`.
        step: of the grid, broadcast to `codes`.

    Example:
        >>> dead_zone_values(torch.tensor([-2.0, 0.0, 1.0]), torch.tensor(0.75), torch.tensor(0.5))
        tensor([-1.5000,  0.0000,  1.0000])
    """
    size = codes.abs()
    beyond = codes.sign() * ((size - 0.5) * step + edge)
    return torch.where(size <= 0.5, 2 * edge * codes, beyond)


@dataclass(frozen=True, eq=False)
class DeadZone(Coded):
    """A weight of R rows and C columns (all but the first dimension) as whole numbers k.

    `value = sign(k) (edge + (|k| - 1/2) step)`, 0 for k = 0, computed in fp32; edge and step belong to the
    whole tensor, or to each group of columns of a row. Codes stand in the order 0, -1, 1, -2, ..., so that
    where a few need a second byte, that byte is zero for all others.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        bits: of a code in memory, 1 to 16: as many as the farthest code needs.
        group: columns that share edge and step; at most C.
        packed: (ceil(R * C * bits / 8),) uint8, `2 k` for k >= 0 and `-2 k - 1` below, row by row.
        edge: (R, G) float32, or (1, 1) where one serves the whole tensor.
        step: the same.

    Source: L2 compression (Shi et al., 2023), section 3.2.

    Example:
        >>> weight = torch.tensor([[0.2, -1.1, 3.0]])
        >>> value = DeadZone.of(weight, torch.tensor(0.5), torch.tensor(1.0))
        >>> value.codes().tolist(), value.dense().tolist()
        ([[0, -1, 3]], [[0.0, -1.0, 3.0]])
    """

    shape: torch.Size
    dtype: torch.dtype
    bits: int
    group: int
    packed: Tensor
    edge: Tensor
    step: Tensor

    kind = "dead zone"

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        check_whole("bits", self.bits, 1, 16)
        check_whole("group", self.group, 1)
        check_packed(self.packed, rows * columns, self.bits)
        expected = (rows, -(-columns // self.group))
        for name, value in (("edge", self.edge), ("step", self.step)):
            if tuple(value.shape) not in (expected, (1, 1)) or value.dtype != PRECISION:
                raise UsageError(
                    f"{name} must be float32 of shape {expected} or (1, 1), found {value.dtype} "
                    f"{tuple(value.shape)}"
                )
        if self.edge.shape != self.step.shape:
            raise UsageError("edge must have the shape of step")

    @classmethod
    def from_codes(
        cls, codes: Tensor, edge: Tensor, step: Tensor,
        *, dtype: torch.dtype, group: int | None = None,
    ) -> Self:  # fmt: skip
        """From signed whole numbers (*shape), edges and steps shaped as the attributes say, or single ones.

        Raises:
            UsageError: a code that 16 bits do not hold, or an edge or step that is not above 0.
        """
        edge, step = (_as_table(name, value) for name, value in (("edge", edge), ("step", step)))
        farthest = int(codes.abs().max()) if codes.numel() else 0
        if farthest > FARTHEST:
            raise UsageError(
                f"codes reach {farthest}, at most {FARTHEST} are stored: take a larger step"
            )
        signed = codes.to(torch.int32)
        symbols = torch.where(signed < 0, -2 * signed - 1, 2 * signed)
        bits = max(1, int(symbols.max()).bit_length() if symbols.numel() else 0)
        width = group or max(1, matrix_shape(codes.shape)[1])
        stored = symbols.to(torch.uint8 if bits <= 8 else torch.uint16)
        return cls(codes.shape, dtype, bits, width, pack(stored, bits), edge, step)

    @classmethod
    def of(cls, weight: Tensor, edge: Tensor, step: Tensor, *, group: int | None = None) -> Self:
        """The nearest codes of `weight` (R, ...), at one edge and step or those of its groups.

        Raises:
            BadWeights: the weight holds NaN or infinity.
            UsageError: as `from_codes`.
        """
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity, which no grid represents")
        rows, columns = matrix_shape(weight.shape)
        edge, step = (_as_table(name, value) for name, value in (("edge", edge), ("step", step)))
        width = group or max(1, columns)
        wide = (spread(value, columns, width) for value in (edge, step))
        codes = dead_zone_codes(weight.reshape(rows, columns).to(PRECISION), *wide).round()
        return cls.from_codes(
            codes.reshape(weight.shape), edge, step, dtype=weight.dtype, group=group
        )

    @property
    def format(self) -> str:
        if self.edge.numel() == 1:
            return "dead zone"
        _, columns = matrix_shape(self.shape)
        return f"dead zone {f'g{self.group}' if self.group < columns else 'row'}"

    def codes(self) -> Tensor:
        """The codes (*shape), int32."""
        symbols = unpack(self.packed, self.bits, self.numel).int()
        size = (symbols + 1) >> 1
        return torch.where(symbols % 2 == 1, -size, size).reshape(self.shape)

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), matrix_shape(self.shape)[1]), np.float32)
        edge, step = self.edge.numpy(), self.step.numpy()
        _decode(self.packed.numpy(), self.bits, self.group, edge, step, index, out)
        return out

    def _dense_by_torch(self) -> Tensor:
        rows, columns = matrix_shape(self.shape)
        codes = self.codes().reshape(rows, columns).to(PRECISION)
        wide = (spread(value, columns, self.group) for value in (self.edge, self.step))
        return dead_zone_values(codes, *wide)

    def state(self) -> State:
        meta = {
            "shape": list(self.shape),
            "dtype": name_of(self.dtype),
            "bits": self.bits,
            "group": self.group,
        }
        symbols = at_rest(unpack(self.packed, self.bits, self.numel), self.bits)
        return State(self.kind, meta, {"codes": symbols, "edge": self.edge, "step": self.step})

    @classmethod
    def from_state(cls, state: State) -> Self:
        meta, edge, step = state.meta, state.arrays["edge"], state.arrays["step"]
        if not (torch.isfinite(edge).all() and torch.isfinite(step).all()):
            raise ValueError("edge or step is not finite")
        codes, shape = state.arrays["codes"], torch.Size(meta["shape"])
        if codes.numel() != shape.numel():
            raise ValueError(f"{codes.numel()} codes for a weight of shape {tuple(shape)}")
        return cls(
            shape, BY_NAME[meta["dtype"]], meta["bits"], meta["group"],
            pack_at_rest(codes, meta["bits"]), edge, step,
        )  # fmt: skip


def _as_table(name: str, value: Tensor) -> Tensor:
    """An edge or step as (R, G) float32."""
    table = value.detach().to(PRECISION)
    table = table.reshape(1, 1) if table.numel() == 1 else table
    if not (torch.isfinite(table).all() and (table > 0).all()):
        raise UsageError(
            f"{name} must be finite and above 0, found {table.min().item():g} as least"
        )
    return table


@njit(cache=True, nogil=True)
def _decode(packed, bits, group, edge, step, index, out):  # type: ignore[no-untyped-def]
    columns = out.shape[1]
    codes = np.empty(columns, np.uint16)
    half = np.float32(0.5)
    for i in range(index.size):
        row = index[i]
        unpack_run(packed, row * columns, bits, codes)
        owner = row if edge.shape[0] > 1 else 0
        for start in range(0, columns, group):
            g = start // group if edge.shape[1] > 1 else 0
            e, s = edge[owner, g], step[owner, g]
            for column in range(start, min(start + group, columns)):
                code = np.int64(codes[column])
                value = (np.float32((code + 1) >> 1) - half) * s + e
                if code == 0:
                    value = np.float32(0.0)
                out[i, column] = -value if code & 1 else value


register_kind(DeadZone)
