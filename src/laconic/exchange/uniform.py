"""`UniformLayer`: integer codes on uniform grids, which is what other tools' formats can hold."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic.errors import UnsupportedModel
from laconic.tensors import CompressedTensor, Grouped, LowRank, Sum
from laconic.tensors.modules import is_conv1d
from laconic.tensors.packing import matrix_shape, pack, spread, unpack
from laconic.tensors.stored import Record
from laconic.tensors.transforms import Permutation


@dataclass(frozen=True, eq=False)
class UniformLayer:
    """A linear layer of R outputs and C inputs: `value[r, c] = (codes[r, c] - zero[r, g]) * scale[r, g]`.

    Attributes:
        path: of the module.
        bits: of a code, 2 to 8.
        group: columns g that share a scale; C where a row has one.
        codes: (R, C) uint8.
        scale: (R, G).
        zero: (R, G) uint8; None for `2 ** (bits - 1)` everywhere.
        order: (C,), column c of the codes multiplies input `order[c]`; None where they are in order.
        transposed: whether the module keeps its weight as (in, out).
        table: whether it is an embedding, whose rows are looked up.
        factors: A (rank, C) and B (R, rank), whose product BA is added to the value; None without.
    """

    path: str
    bits: int
    group: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = None
    transposed: bool = False
    table: bool = False
    factors: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, path: str, record: Record, module: nn.Module) -> "UniformLayer":
        """From what laconic stores of `module`.

        Raises:
            UnsupportedModel: it is not codes on a uniform grid with nothing else.
        """
        (weight, factors), moved = without_factors(record.weight), record.transform
        if not isinstance(weight, Grouped) or len(weight.shape) != 2:
            raise UnsupportedModel(f"{path} is {weight.format}, not integers on a uniform grid")
        if moved is not None and not isinstance(moved, Permutation):
            raise UnsupportedModel(f"{path} has a {moved.kind} before it")
        if record.activation is not None:
            raise UnsupportedModel(f"{path} rounds its inputs, each tool in its own way")
        rows, columns = matrix_shape(weight.shape)
        groups = -(-columns // weight.group)
        scale = weight.scale.expand(rows, groups)
        zero = None if weight.zero is None else weight.zero.expand(rows, groups)
        order = None if moved is None else moved.order
        return cls(
            path, weight.bits, weight.group, weight.codes(), scale, zero, order,
            is_conv1d(module), isinstance(module, nn.Embedding), factors,
        )  # fmt: skip

    @property
    def columns(self) -> int:
        return self.codes.shape[1]

    @property
    def zeros(self) -> Tensor:
        """The zero points (R, G), uint8."""
        if self.zero is not None:
            return self.zero
        return torch.full_like(self.scale, 2 ** (self.bits - 1), dtype=torch.uint8)

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are in the middle."""
        return self.zero is None or bool((self.zero == 2 ** (self.bits - 1)).all())

    def record(self, dtype: torch.dtype) -> Record:
        """What laconic stores of it; `dtype` is the model's. Scales keep theirs."""
        zero = None if self.symmetric else self.zeros.contiguous()
        packed = pack(self.codes, self.bits)
        grouped = Grouped(
            self.codes.shape, dtype, self.bits, self.group, packed, self.scale.contiguous(), zero
        )
        moved = None if self.order is None else Permutation(self.order.int())
        return Record(grouped, moved)

    def scale_as(self, dtype: torch.dtype) -> Tensor:
        """The scales (R, G) in `dtype`; those of groups that are 0 throughout, which say nothing, are 1.

        Raises:
            UnsupportedModel: one of them is beyond what `dtype` holds.
        """
        off = self.codes != spread(self.zeros, self.columns, self.group)
        index = torch.arange(self.columns) // self.group
        used = torch.zeros(self.scale.shape).index_add_(1, index, off.float()) > 0
        scale = torch.where(used, self.scale.float(), 1.0)
        if float(scale.abs().max()) > torch.finfo(dtype).max or (scale.to(dtype) == 0).any():
            raise UnsupportedModel(f"{self.path} has a scale that is beyond {dtype}")
        return scale.to(dtype)

    def only_linear(self) -> None:
        """Raises `UnsupportedModel` where it is an embedding."""
        if self.table:
            raise UnsupportedModel(f"{self.path} is a compressed embedding, and not a linear layer")

    def whole_groups(self) -> None:
        """Raises `UnsupportedModel` where the last group of a row is shorter than the others."""
        if self.columns % self.group:
            raise UnsupportedModel(
                f"{self.path} has {self.columns} columns, which groups of {self.group} do not divide"
            )


def without_factors(
    value: CompressedTensor,
) -> tuple[CompressedTensor, tuple[Tensor, Tensor] | None]:
    """What factors of low rank were added to, and these: A (rank, C) and B (R, rank); None without.

    Only matrices have such; a sum of anything else stays as it is.
    """
    if not isinstance(value, Sum) or len(value.shape) != 2:
        return value, None
    added = [part for part in value.parts if isinstance(part, LowRank)]
    rest = [part for part in value.parts if not isinstance(part, LowRank)]
    if not added or len(rest) != 1:
        return value, None
    a = torch.cat([part.right.dense() for part in added])
    return rest[0], (a, torch.cat([part.left.dense() for part in added], dim=1))


def rounding_of(layer: UniformLayer, dtype: torch.dtype) -> float:
    """The greatest relative change of a scale that `dtype` makes."""
    scale = layer.scale_as(dtype).float()
    kept = layer.scale.float()
    return float(torch.where(scale == 1, 0, (scale / kept - 1).abs()).max())


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes (N, K) uint8 as (N, K * bits / 32) int32, the first in the lowest bits.

    K * bits must be a multiple of 32.
    """
    return pack(codes.contiguous(), bits).view(torch.int32).reshape(codes.shape[0], -1)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack_words`: (N, words) int32 as (N, count) uint8."""
    rows = words.contiguous()
    return unpack(rows.view(torch.uint8).reshape(-1), bits, rows.numel() * 32 // bits).reshape(
        rows.shape[0], -1
    )[:, :count]
