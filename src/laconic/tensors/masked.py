"""Sparse weights: `Masked` keeps the kept values, `MaskedCodes` the kept codes of another format."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.coded import Coded
from laconic.tensors.combined import Transformed
from laconic.tensors.compressed import CompressedTensor, State, from_state, nested, register_kind
from laconic.tensors.dense import Dense
from laconic.tensors.dtypes import BY_NAME
from laconic.tensors.masks import ChannelMask, Mask
from laconic.tensors.packing import (
    PRECISION,
    at_rest,
    check_packed,
    from_rest,
    pack,
    pack_at_rest,
    unpack,
)


@dataclass(frozen=True, eq=False)
class Masked(CompressedTensor):
    """A weight that is zero where the mask says so; its kept values are a tensor of their own.

    The kept values stand row by row: groups of a quantizer run over what is kept, whatever lies
    between. Use `MaskedCodes` where the groups are those of the whole weight.

    Attributes:
        values: as many as the mask keeps, of any shape; best of `mask.kept_shape`.
        mask: which weights they are.

    Example:
        >>> from laconic.tensors import Bitmask
        >>> weight = torch.tensor([[3.0, 0.0, 5.0]])
        >>> Masked.of(weight, Bitmask.of(weight != 0)).dense()
        tensor([[3., 0., 5.]])
    """

    values: CompressedTensor
    mask: Mask

    kind = "masked"

    def __post_init__(self) -> None:
        if self.values.numel != self.mask.kept:
            raise UsageError(f"{self.values.numel} values for a mask that keeps {self.mask.kept}")

    @classmethod
    def of(
        cls, weight: Tensor, mask: Mask, compress: Callable[[Tensor], CompressedTensor] = Dense
    ) -> Self:
        """The weights that `mask` keeps, `compress`ed in the shape `mask.kept_shape`."""
        return cls(compress(mask.gather(weight)), mask)

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.mask.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.values.dtype

    @property
    def format(self) -> str:
        return f"{self.values.format}, {self.mask.format}"

    @property
    def skips(self) -> bool:
        """Whether only what is kept is multiplied: whole channels were dropped."""
        mask = self.mask
        return isinstance(mask, ChannelMask) and self.values.shape == mask.kept_shape

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.mask.scatter(self.values.dense(dtype))

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`; of whole channels, only those that are kept are multiplied."""
        mask = self.mask
        if not self.skips or not isinstance(mask, ChannelMask):
            return super().matmul(x, bias)
        kept = self.values.matmul(x[..., mask.columns], None if bias is None else bias[mask.rows])
        out = x.new_zeros(*x.shape[:-1], mask.rows.numel())
        if bias is not None:
            out += bias.to(x.dtype)
        out[..., mask.rows] = kept
        return out

    def state(self) -> State:
        return State(
            self.kind, {}, parts={"values": self.values.state(), "mask": self.mask.state()}
        )

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(
            nested(state, "values", CompressedTensor),  # type: ignore[type-abstract]
            nested(state, "mask", Mask),  # type: ignore[type-abstract]
        )


@dataclass(frozen=True, eq=False)
class MaskedCodes(CompressedTensor):
    """A weight in a format with one code for each weight, without the codes of pruned weights.

    Scales, zero points and codebooks stay those of the whole weight.

    Attributes:
        mask: which weights are kept.
        packed: (ceil(kept * bits / 8),) uint8, their codes, row by row.
        bits: of a code.
        frame: what the format keeps besides its codes.
        name: of the format.

    Example:
        >>> from laconic.tensors import Bitmask, IntQuantizer
        >>> weight = torch.tensor([[3.0, 0.1, 8.0]])
        >>> MaskedCodes.of(IntQuantizer().quantize(weight), Bitmask.of(weight > 1)).dense()
        tensor([[3., 0., 8.]])
    """

    mask: Mask
    packed: Tensor
    bits: int
    frame: State
    name: str

    kind = "masked codes"

    def __post_init__(self) -> None:
        check_packed(self.packed, self.mask.kept, self.bits)

    @classmethod
    def of(cls, whole: CompressedTensor, mask: Mask) -> Self:
        """What `mask` keeps of `whole`.

        Raises:
            UsageError: the format has no code for each weight, or the shapes differ.
        """
        if not isinstance(whole, Coded) or not whole.code_per_weight:
            raise UsageError(f"{whole.format} has no code for each weight; use Masked")
        if whole.shape != mask.shape:
            raise UsageError(f"a mask {tuple(mask.shape)} over a weight {tuple(whole.shape)}")
        state = whole.state()
        codes = mask.gather(from_rest(state.arrays["codes"], 2**whole.bits).reshape(mask.shape))
        arrays = {name: array for name, array in state.arrays.items() if name != "codes"}
        frame = replace(state, arrays=arrays)
        return cls(mask, pack(codes, whole.bits), whole.bits, frame, whole.format)

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.mask.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return BY_NAME[self.frame.meta["dtype"]]

    @property
    def format(self) -> str:
        return f"{self.name}, {self.mask.format}"

    def whole(self) -> CompressedTensor:
        """The tensor that the mask covers, with code 0 where codes were dropped."""
        codes = self.mask.scatter(unpack(self.packed, self.bits, self.mask.kept))
        arrays = self.frame.arrays | {"codes": at_rest(codes, self.bits)}
        value = from_state(replace(self.frame, arrays=arrays))
        if not isinstance(value, Coded) or (value.shape, value.bits) != (self.shape, self.bits):
            raise UsageError(f"a {value.kind} does not fit a mask of shape {tuple(self.shape)}")
        return value

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        value = self.whole().dense(PRECISION)
        return value.masked_fill_(~self.mask.dense(), 0).to(dtype or self.dtype)

    def state(self) -> State:
        codes = unpack(self.packed, self.bits, self.mask.kept)
        return State(
            self.kind, {"bits": self.bits}, {"codes": at_rest(codes, self.bits)},
            {"mask": self.mask.state(), "frame": self.frame},
        )  # fmt: skip

    @classmethod
    def from_state(cls, state: State) -> Self:
        mask, bits = nested(state, "mask", Mask), state.meta["bits"]  # type: ignore[type-abstract]
        codes = pack_at_rest(state.arrays["codes"], bits)
        unnamed = cls(mask, codes, bits, state.parts["frame"], "")
        return replace(unnamed, name=unnamed.whole().format)


def mask_of(value: CompressedTensor) -> Mask | None:
    """Which weights of a pruned weight are kept; None where nothing was pruned."""
    if isinstance(value, Transformed):
        return mask_of(value.inner)
    return value.mask if isinstance(value, Masked | MaskedCodes) else None


def replaceable(value: CompressedTensor) -> bool:
    """Whether nothing is lost when another grid takes the place of this value: it is dense, or on a grid."""
    if isinstance(value, Transformed):
        return replaceable(value.inner)
    return isinstance(value, Dense | Coded)


def masked_again(value: CompressedTensor, mask: Mask) -> CompressedTensor | None:
    """`value`, a pruned weight in another format, with the zeros of `mask`; None where it cannot have any.

    Example:
        >>> from laconic.tensors import Bitmask, IntQuantizer
        >>> weight = torch.tensor([[3.0, 0.0, 7.0]])
        >>> masked_again(IntQuantizer().quantize(weight), Bitmask.of(weight != 0)).format
        'int4 row, 66.7 % kept'
    """
    if mask_of(value) is not None:
        return value
    if isinstance(value, Transformed):
        inner = masked_again(value.inner, mask)
        keeps = value.transform.kind == "channel scale"
        return replace(value, inner=inner) if inner is not None and keeps else None
    if isinstance(value, Coded) and value.code_per_weight:
        return MaskedCodes.of(value, mask)
    return Masked.of(value.value, mask) if isinstance(value, Dense) else None


register_kind(Masked)
register_kind(MaskedCodes)
