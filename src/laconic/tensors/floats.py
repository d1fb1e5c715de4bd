"""`FloatQuantizer`: FP8, FP6 and FP4, with plain, power-of-two (MX) or two-level (NVFP4) scales."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.grouped_float import SCALES, GroupedFloat, joint_scale
from laconic.tensors.integer import SMALLEST_SCALE, WEIGHTS_AT_ONCE, Group
from laconic.tensors.minifloat import E4M3, MINIFLOATS, MiniFloat
from laconic.tensors.packing import PRECISION, grouped, matrix, spread
from laconic.tensors.quantizer import Quantizer, register_quantizer

SMALLEST = torch.finfo(PRECISION).tiny


class Format(NamedTuple):
    """An element, how its scales are kept, and how many columns share one."""

    element: str
    scale: str
    block: int | None = None


FORMATS = {
    **{name: Format(name, "bf16") for name in MINIFLOATS},
    "mxfp8": Format("e4m3", "e8m0", 32),
    "mxfp6": Format("e2m3", "e8m0", 32),
    "mxfp4": Format("e2m1", "e8m0", 32),
    "nvfp4": Format("e2m1", "e4m3", 16),
}
#: Multiples of the rule's scale that the search for the least error tries besides.
FACTORS = {
    "e8m0": (0.5, 2.0),
    "bf16": tuple(2.0 ** (eighths / 8) for eighths in range(-8, 5) if eighths),
    "e4m3": tuple(2.0 ** (eighths / 8) for eighths in range(-8, 5) if eighths),
}


class FloatGrid(NamedTuple):
    """The scales of a tensor: `element(code) * scale * tensor_scale`.

    Attributes:
        scale: (R, G) in the dtype that the format keeps; (1, 1) for a whole tensor.
        tensor_scale: (1,) float32, or None.
        group: columns a group.
    """

    scale: Tensor
    tensor_scale: Tensor | None
    group: int


@dataclass(frozen=True)
class FloatQuantizer(Quantizer[FloatGrid]):
    """Rounds to floats of 4, 6 or 8 bits that share a scale per block, per row, or per tensor.

    `mxfp4`, `mxfp6` (E2M3) and `mxfp8` (E4M3) share a power of two among 32 columns, as OCP's MX
    formats do: the block's greatest exponent less that of the element. `nvfp4` has an E4M3 scale for
    each 16 columns and a float32 for the tensor. The plain `e4m3`, `e5m2`, `e3m2`, `e2m3` and
    `e2m1` have a bfloat16 scale, at which the greatest magnitude is the greatest element.

    Args:
        format: one of the above.
        group: columns that share a scale, `"row"` or `"tensor"`; only of the plain formats, per row
            by default.
        range: `"minmax"` takes the scales from the format's rule; `"mse"` the multiple of it, from
            half to twice, that makes the squared error of the block least.

    Example:
        >>> FloatQuantizer("mxfp4").project(torch.tensor([[6.0, -3.2, 1.3, 0.2]]))
        tensor([[ 6.0000, -3.0000,  1.5000,  0.0000]])
    """

    format: str = "nvfp4"
    group: Group | None = None
    range: Literal["minmax", "mse"] = "minmax"

    kind = "float"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"format must be one of {', '.join(FORMATS)}, found {self.format!r}")
        block = FORMATS[self.format].block
        if block is not None and self.group is not None:
            raise UsageError(f"the group of {self.format} is {block}: leave it out")
        if self.group not in (None, "row", "tensor") and not (
            isinstance(self.group, int) and self.group >= 1
        ):
            raise UsageError(
                f"group must be a number >= 1, 'row' or 'tensor', found {self.group!r}"
            )
        if self.range not in ("minmax", "mse"):
            raise UsageError(f"range must be 'minmax' or 'mse', found {self.range!r}")

    def fit(self, x: Tensor) -> FloatGrid:
        """The scales of each block of `x` (R, ...)."""
        rows = matrix(x)
        group = self._group_size(rows)
        tensor_scale = None
        if self._scale == "e4m3":
            greatest = rows.abs().amax() if rows.numel() else rows.new_zeros(())
            tensor_scale = greatest / (self.element.largest * E4M3.largest)
            tensor_scale = tensor_scale.clamp(min=SMALLEST).reshape(1)
        if self.group == "tensor":
            rows = rows.reshape(1, -1) if rows.numel() else rows.new_zeros(1, 1)
            return FloatGrid(self._scales(rows, rows.shape[1], tensor_scale), tensor_scale, group)
        parts = torch.split(rows, max(1, WEIGHTS_AT_ONCE // max(1, rows.shape[1])))
        scales = [self._scales(part, group, tensor_scale) for part in parts]
        return FloatGrid(torch.cat(scales), tensor_scale, group)

    def scales(self, params: FloatGrid, columns: int) -> Tensor:
        """What the element of each of `columns` columns is multiplied by, (R, columns), or (1, 1) for all."""
        return spread(joint_scale(params.scale, params.tensor_scale), columns, params.group)

    def encode(self, x: Tensor, params: FloatGrid) -> Tensor:
        """Codes of `x`, same shape, uint8: the bits of the elements."""
        rows = matrix(x)
        return self.element.encode(rows / self.scales(params, rows.shape[1])).reshape(x.shape)

    def decode(self, codes: Tensor, params: FloatGrid) -> Tensor:
        """The values of `codes`, same shape, float32."""
        values = self.element.table(codes.device)[matrix(codes).int()]
        return (values * self.scales(params, values.shape[1])).reshape(codes.shape)

    def pack(self, codes: Tensor, params: FloatGrid, like: Tensor) -> CompressedTensor:
        """A `GroupedFloat` tensor."""
        return GroupedFloat.from_codes(
            codes, params.scale, params.tensor_scale,
            element=FORMATS[self.format].element, group=params.group, dtype=like.dtype,
        )  # fmt: skip

    @property
    def element(self) -> MiniFloat:
        """The float that codes are the bits of."""
        return MINIFLOATS[FORMATS[self.format].element]

    @property
    def _scale(self) -> str:
        return FORMATS[self.format].scale

    def _group_size(self, rows: Tensor) -> int:
        columns = max(1, rows.shape[1])
        wanted = FORMATS[self.format].block or self.group
        return min(wanted, columns) if isinstance(wanted, int) else columns

    def _scales(self, rows: Tensor, group: int, tensor_scale: Tensor | None) -> Tensor:
        """The scale of each group of `rows` (R, C), (R, G)."""
        values = grouped(rows, group)
        greatest = values.abs().amax(-1) if values.numel() else values.new_zeros(values.shape[:2])
        if self._scale == "e8m0":
            rule = greatest / 2.0**self.element.largest_exponent
        else:
            rule = greatest / self.element.largest
            rule = rule if tensor_scale is None else rule / tensor_scale
        if self.range == "mse":
            rule = rule * self._best_factor(values, rule, tensor_scale)
        return _keep(rule, self._scale)

    def _best_factor(self, values: Tensor, rule: Tensor, tensor_scale: Tensor | None) -> Tensor:
        """The factor at which each block of `values` (R, G, group) has the least squared error."""
        unit = joint_scale(_keep(rule, self._scale), tensor_scale)
        units = values / unit.unsqueeze(-1)  # squares of the values themselves might overflow
        table = self.element.table(values.device)

        def loss(factor: float) -> Tensor:
            scale = joint_scale(_keep(rule * factor, self._scale), tensor_scale)
            ratio = (scale / unit).unsqueeze(-1)
            rounded = table[self.element.encode(units / ratio).int()] * ratio
            return rounded.sub_(units).square_().sum(-1)

        best, least = torch.ones_like(rule), loss(1.0)
        for factor in FACTORS[self._scale]:
            error = loss(factor)
            best = torch.where(error < least, factor, best)
            least = torch.minimum(error, least)
        return best


def _keep(scale: Tensor, kept_as: str) -> Tensor:
    """`scale` (any shape, float32, not negative) as the format keeps it: never zero, NaN if it was."""
    if kept_as == "bf16":
        return scale.to(torch.bfloat16).clamp(min=SMALLEST_SCALE)
    if kept_as == "e8m0":  # an E8M0 is what float32 has for an exponent: it rounds down
        return (scale.view(torch.int32) >> 23).to(torch.uint8).view(SCALES[kept_as])
    return E4M3.encode(scale).clamp(min=1).view(SCALES[kept_as])


register_quantizer(FloatQuantizer)
