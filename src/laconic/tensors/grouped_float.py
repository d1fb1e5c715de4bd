"""`GroupedFloat`: floats of 4 to 8 bits with a scale for each group; FP8, MXFP4, NVFP4 and kin."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.coding.bitpack import unpack_run
from laconic.errors import CorruptFile, UsageError
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import State, register_kind
from laconic.tensors.dtypes import BY_NAME, name_of
from laconic.tensors.minifloat import MINIFLOATS, MiniFloat
from laconic.tensors.packing import (
    at_rest,
    check_packed,
    check_whole,
    from_rest,
    matrix_shape,
    pack,
    spread,
    unpack,
)

#: What a group's scale may be kept as, by the name that is stored.
SCALES = {
    "bf16": torch.bfloat16,
    "e8m0": torch.float8_e8m0fnu,
    "e4m3": torch.float8_e4m3fn,
}
SCALE_NAMES = {dtype: name for name, dtype in SCALES.items()}


@dataclass(frozen=True, eq=False)
class GroupedFloat(Coded):
    """A weight of R rows and C columns (all but the first dimension) as scaled small floats.

    `value[r, c] = element(code[r, c]) * scale[r, c // group] * tensor_scale`, computed in fp32, the
    two scales multiplied first. The last group of a row may be ragged.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        element: one of `MINIFLOATS`: `e2m1`, `e4m3`, ...
        group: columns a group; at most C.
        packed: (ceil(R * C * bits / 8),) uint8, the codes, row by row.
        scale: (R, G), or (1, 1) where one scale serves the whole tensor; bfloat16, E8M0 (a power of
            two) or E4M3.
        tensor_scale: (1,) float32, or None.

    Source: OCP Microscaling Formats (MX) Specification 1.0; OCP 8-bit Floating Point Specification
    1.0; NVFP4 as in NVIDIA's compressed checkpoints.
    """

    shape: torch.Size
    dtype: torch.dtype
    element: str
    group: int
    packed: Tensor
    scale: Tensor
    tensor_scale: Tensor | None = None

    kind = "grouped float"

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        if self.element not in MINIFLOATS:
            raise UsageError(f"unknown element {self.element!r}; known: {', '.join(MINIFLOATS)}")
        check_whole("group", self.group, 1)
        check_packed(self.packed, rows * columns, self.bits)
        if self.scale.dtype not in SCALE_NAMES:
            raise UsageError(f"scales are bfloat16, E8M0 or E4M3, found {self.scale.dtype}")
        expected = (rows, -(-columns // self.group))
        if tuple(self.scale.shape) not in (expected, (1, 1)):
            raise UsageError(f"scale must be {expected} or (1, 1), found {tuple(self.scale.shape)}")
        if self.tensor_scale is not None and self.tensor_scale.shape != (1,):
            raise UsageError(f"tensor_scale must be (1,), found {tuple(self.tensor_scale.shape)}")

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, tensor_scale: Tensor | None,
        *, element: str, group: int, dtype: torch.dtype,
    ) -> Self:  # fmt: skip
        """From codes (*shape) and scales shaped as the attributes say."""
        packed = pack(codes.to(torch.uint8), MINIFLOATS[element].bits)
        return cls(codes.shape, dtype, element, group, packed, scale, tensor_scale)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of a code."""
        return self._float.bits

    @property
    def format(self) -> str:
        rows, columns = matrix_shape(self.shape)
        if self.scale.dtype == torch.float8_e8m0fnu:
            usual = self.element in ("e2m1", "e2m3", "e4m3")
            name = f"mxfp{self.bits}{'' if usual else f' {self.element}'}"
            return name if self.group == 32 else f"{name} g{self.group}"
        if self.scale.dtype == torch.float8_e4m3fn:
            return f"nvfp{self.bits}" if self.group == 16 else f"nvfp{self.bits} g{self.group}"
        per = f"g{self.group}" if self.group < columns else "row"
        return f"{self.element} {'tensor' if self.scale.numel() == 1 < rows else per}"

    @property
    def _float(self) -> MiniFloat:
        return MINIFLOATS[self.element]

    def codes(self) -> Tensor:
        """The codes (*shape), uint8."""
        return unpack(self.packed, self.bits, self.numel).reshape(self.shape)

    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), matrix_shape(self.shape)[1]), np.float32)
        scale = joint_scale(self.scale, self.tensor_scale).numpy()
        table = self._float.table().numpy()
        _look_up(self.packed.numpy(), self.bits, table, self.group, scale, index, out)
        return out

    def _dense_by_torch(self) -> Tensor:
        rows, columns = matrix_shape(self.shape)
        values = self._float.table(self.packed.device)[self.codes().int()].reshape(rows, columns)
        return values * spread(joint_scale(self.scale, self.tensor_scale), columns, self.group)

    def state(self) -> State:
        meta = {
            "shape": list(self.shape),
            "dtype": name_of(self.dtype),
            "element": self.element,
            "group": self.group,
            "scale": SCALE_NAMES[self.scale.dtype],
        }
        small = self.scale.element_size() == 1
        arrays = {
            "codes": at_rest(self.codes(), self.bits),
            "scale": self.scale.view(torch.uint8) if small else self.scale,
        }
        if self.tensor_scale is not None:
            arrays["tensor_scale"] = self.tensor_scale
        return State(self.kind, meta, arrays)

    @classmethod
    def from_state(cls, state: State) -> Self:
        meta, element = state.meta, MINIFLOATS[state.meta["element"]]
        codes = from_rest(state.arrays["codes"], 2**element.bits)
        if codes.numel() and int((codes & 2 ** (element.bits - 1) - 1).max()) > element.top:
            raise CorruptFile(f"a code of {meta['element']} is no number")
        return cls(
            torch.Size(meta["shape"]), BY_NAME[meta["dtype"]], meta["element"], meta["group"],
            pack(codes, element.bits), state.arrays["scale"].view(SCALES[meta["scale"]]),
            state.arrays.get("tensor_scale"),
        )  # fmt: skip


def joint_scale(scale: Tensor, tensor_scale: Tensor | None) -> Tensor:
    """The factor of each group, float32, in the shape of `scale`."""
    factor = scale.float()
    return factor if tensor_scale is None else factor * tensor_scale


@njit(cache=True, nogil=True)
def _look_up(packed, bits, table, group, scale, index, out):  # type: ignore[no-untyped-def]
    columns = out.shape[1]
    codes = np.empty(columns, np.uint8)
    for i in range(index.size):
        row = index[i]
        unpack_run(packed, row * columns, bits, codes)
        owner = row if scale.shape[0] > 1 else 0
        for start in range(0, columns, group):
            step = scale[owner, start // group if scale.shape[1] > 1 else 0]
            for column in range(start, min(start + group, columns)):
                out[i, column] = table[codes[column]] * step


register_kind(GroupedFloat)
