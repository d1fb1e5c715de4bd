"""`Codebook`: neighbouring weights as one index into a small table of vectors."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from laconic.coding.bitpack import unpack_run
from laconic.errors import UsageError
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import CompressedTensor, State, nested, register_kind
from laconic.tensors.dtypes import BY_NAME, name_of
from laconic.tensors.packing import (
    PRECISION,
    at_rest,
    check_packed,
    check_whole,
    from_rest,
    matrix_shape,
    pack,
    spread,
    unpack,
)
from laconic.tensors.patches import Patches

ENTRY_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)


@dataclass(frozen=True, eq=False)
class Codebook(Coded):
    """A weight of R rows and C columns (all but the first dimension) as indices of vectors.

    `value[r, dim * v + d] = entry[code[r, v], d] * scale[r, (dim * v + d) // scale_block]`, the entry
    from the codebook of the group in which the vector lies, computed in fp32.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        bits: of a code, 1 to 16.
        rows_per_group: rows that share a codebook.
        columns_per_group: columns that share a codebook, a multiple of dim.
        packed: (ceil(R * V * bits / 8),) uint8, V = ceil(C / dim) codes in each row.
        entries: (groups, K, dim) bfloat16, float16, float32, or int8 with `entry_scale`; groups row
            by row, K at most 2 ** bits.
        entry_scale: (groups,), or None.
        scale: (R, ceil(C / scale_block)), or None.
        scale_block: columns that share a scale; 0 where there is none.

    Source: GPTVQ (van Baalen et al., 2024, arXiv 2402.15319), section 3.
    """

    shape: torch.Size
    dtype: torch.dtype
    bits: int
    rows_per_group: int
    columns_per_group: int
    packed: Tensor
    entries: Tensor
    entry_scale: Tensor | None = None
    scale: CompressedTensor | None = None
    scale_block: int = 0

    kind = "codebook"

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 1, 16)
        if self.entries.ndim != 3 or self.entries.dtype not in ENTRY_DTYPES:
            raise UsageError(
                f"entries must be (groups, K, dim) of bfloat16, float16, float32 or int8, found "
                f"{self.entries.dtype} {tuple(self.entries.shape)}"
            )
        patches = self.patches
        down, across = patches.grid
        groups, count, _ = self.entries.shape
        if groups != down * across or not 1 <= count <= 2**self.bits:
            raise UsageError(
                f"{groups} codebooks of {count} do not fit {down} x {across} groups of "
                f"{self.bits}-bit codes"
            )
        check_packed(self.packed, patches.rows * patches.vectors, self.bits)
        if (self.entry_scale is None) != (self.entries.dtype != torch.int8) or (
            self.entry_scale is not None and self.entry_scale.shape != (groups,)
        ):
            raise UsageError("int8 entries, and only these, have a scale for each codebook")
        if self.scale is not None:
            check_whole("scale_block", self.scale_block, 1)
            if tuple(self.scale.shape) != (patches.rows, -(-patches.columns // self.scale_block)):
                raise UsageError(f"scales {tuple(self.scale.shape)} do not fit {self.shape}")

    @classmethod
    def from_codes(
        cls, codes: Tensor, entries: Tensor, *, shape: torch.Size, dtype: torch.dtype,
        rows_per_group: int | None = None, columns_per_group: int | None = None,
        entry_scale: Tensor | None = None, scale: CompressedTensor | None = None,
        scale_block: int = 0,
    ) -> Self:  # fmt: skip
        """From codes (R, V) below K; one codebook serves all where no group is given."""
        count, dim = entries.shape[-2:]
        if codes.numel() and int(codes.max()) >= count:
            raise UsageError(f"code {int(codes.max())} of a codebook of {count}")
        patches = Patches.of(shape, dim, rows_per_group, columns_per_group)
        bits = max(1, (count - 1).bit_length())
        return cls(
            shape, dtype, bits, patches.rows_per_group, patches.columns_per_group,
            pack(codes.int(), bits), entries, entry_scale, scale, scale_block,
        )  # fmt: skip

    @property
    def dim(self) -> int:
        """Columns a vector."""
        return self.entries.shape[2]

    @property
    def patches(self) -> Patches:
        """The geometry."""
        return Patches(
            *matrix_shape(self.shape), self.dim, self.rows_per_group, self.columns_per_group
        )

    @property
    def code_per_weight(self) -> bool:
        return self.dim == 1

    @property
    def format(self) -> str:
        many = f" x {len(self.entries)}" if len(self.entries) > 1 else ""
        return f"codebook {self.bits / self.dim:g} bit d{self.dim}{many}"

    def codes(self) -> Tensor:
        """The codes (R, V), uint8 or int32."""
        patches = self.patches
        count = patches.rows * patches.vectors
        return unpack(self.packed, self.bits, count).reshape(patches.rows, patches.vectors)

    def tables(self) -> Tensor:
        """The codebooks (groups, 2 ** bits, dim) float32; zeros behind the last entry."""
        values = self.entries.to(PRECISION)
        if self.entry_scale is not None:
            values = values * self.entry_scale.to(PRECISION)[:, None, None]
        return F.pad(values, (0, 0, 0, 2**self.bits - values.shape[1]))

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        patches = self.patches
        out = np.empty((len(index), patches.vectors * self.dim), np.float32)
        length = self.columns_per_group // self.dim
        scale = np.zeros((0, 0), np.float32)
        if self.scale is not None:
            scale = self.scale.rows(torch.from_numpy(index), PRECISION).numpy()
        _look_up(
            self.packed.numpy(), self.bits, self.tables().numpy(), self.rows_per_group, length,
            patches.grid[1], scale, self.scale_block, index, out,
        )  # fmt: skip
        return np.ascontiguousarray(out[:, : patches.columns])

    def _dense_by_torch(self) -> Tensor:
        patches = self.patches
        group = patches.groups(self.packed.device)
        values = self.tables()[group, self.codes().int()]  # (R, V, dim)
        values = values.reshape(patches.rows, patches.vectors * self.dim)[:, : patches.columns]
        if self.scale is not None:
            values = values * spread(self.scale.dense(PRECISION), patches.columns, self.scale_block)
        return values

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        from laconic.tensors.triton_products import vector_product

        patch = (self.rows_per_group, self.columns_per_group // self.dim, self.patches.grid[1])
        scale = None if self.scale is None else self.scale.dense(PRECISION)
        return vector_product(
            x, self.packed, self.bits, self.entries, self.shape[0], 1, bias, patch=patch,
            table_scale=self.entry_scale, scale=scale, scale_block=self.scale_block,
        )  # fmt: skip

    def state(self) -> State:
        meta = {
            "shape": list(self.shape),
            "dtype": name_of(self.dtype),
            "bits": self.bits,
            "group": [self.rows_per_group, self.columns_per_group],
        }
        arrays = {"codes": at_rest(self.codes(), self.bits), "entries": self.entries}
        if self.entry_scale is not None:
            arrays["entry_scale"] = self.entry_scale
        if self.scale is None:
            return State(self.kind, meta, arrays)
        meta["scale_block"] = self.scale_block
        return State(self.kind, meta, arrays, {"scale": self.scale.state()})

    @classmethod
    def from_state(cls, state: State) -> Self:
        meta, entries = state.meta, state.arrays["entries"]
        codes = from_rest(state.arrays["codes"], entries.shape[1])
        rows_per_group, columns_per_group = meta["group"]
        scale = None
        if "scale" in state.parts:
            scale = nested(state, "scale", CompressedTensor)  # type: ignore[type-abstract]
        return cls(
            torch.Size(meta["shape"]), BY_NAME[meta["dtype"]], meta["bits"], rows_per_group,
            columns_per_group, pack(codes, meta["bits"]), entries,
            state.arrays.get("entry_scale"), scale, meta.get("scale_block", 0),
        )  # fmt: skip


def int8_entries(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (groups, K, dim) in int8, symmetric, and the step of each codebook (groups,) bfloat16.

    The greatest is always 127, so that what comes back is kept as it is when it is stored again.
    """
    greatest = (
        entries.abs().amax(dim=(1, 2)) if entries.numel() else entries.new_zeros(len(entries))
    )
    step = (greatest / 127).to(torch.bfloat16)
    above = step.to(entries.dtype) * 127 > greatest
    step = (step.view(torch.int16) - above.to(torch.int16)).view(torch.bfloat16)  # the one below
    step = step.clamp(min=torch.finfo(torch.bfloat16).tiny)
    whole = (entries / step.to(entries.dtype)[:, None, None]).round().clamp(-127, 127)
    return whole.to(torch.int8), step


@njit(cache=True, nogil=True)
def _look_up(  # type: ignore[no-untyped-def]
    packed, bits, tables, rows_per_group, length, across, scale, block, index, out
):
    dim = tables.shape[2]
    codes = np.empty(out.shape[1] // dim, np.uint16)
    for i in range(index.size):
        row = index[i]
        unpack_run(packed, row * codes.size, bits, codes)
        first = row // rows_per_group * across
        for v in range(codes.size):
            entry = tables[first + v // length, codes[v]]
            for d in range(dim):
                out[i, v * dim + d] = entry[d]
        for b in range(scale.shape[1]):
            for column in range(b * block, min(b * block + block, out.shape[1])):
                out[i, column] *= scale[i, b]


register_kind(Codebook)
