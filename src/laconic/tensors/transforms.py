"""Input transforms: what a compressed module does to its input before it multiplies."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from laconic.errors import BadWeights, UsageError
from laconic.numerics.hadamard import hadamard_block, hadamard_transform, random_signs
from laconic.numerics.parallel import one_thread
from laconic.tensors.compressed import InputTransform, State, nested_row, register_kind
from laconic.tensors.packing import check_whole, pack, unpack


@dataclass(frozen=True, eq=False)
class ChannelScale(InputTransform):
    """Divides input channel c by `scale[c]`; the weight is multiplied by it.

    Attributes:
        scale: (in,) positive.

    Example:
        >>> half = ChannelScale(torch.tensor([2.0, 1.0]))
        >>> half(torch.ones(2)), half.fold(torch.ones(1, 2))
        (tensor([0.5000, 1.0000]), tensor([[2., 1.]]))
    """

    scale: Tensor

    kind = "channel scale"

    def __post_init__(self) -> None:
        if self.scale.ndim != 1:
            raise UsageError(f"scale must be (in,), found {tuple(self.scale.shape)}")

    @property
    def width(self) -> int:
        return self.scale.numel()

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.scale.to(x.dtype)

    def _fold(self, rows: Tensor) -> Tensor:
        return rows * self.scale.to(rows.dtype)

    def _unfold(self, rows: Tensor) -> Tensor:
        return rows / self.scale.to(rows.dtype)

    def state(self) -> State:
        return State(self.kind, {}, {"scale": self.scale})

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(state.arrays["scale"])


@dataclass(frozen=True, eq=False)
class Hadamard(InputTransform):
    """Flips signs, then mixes the channels of each block by an orthonormal Walsh-Hadamard matrix.

    Attributes:
        signs: (in,) int8 of 1 and -1.
        block: channels a block, a power of two that divides their number.

    Example:
        >>> Hadamard(torch.ones(4, dtype=torch.int8), block=4)(torch.tensor([1.0, 0, 0, 0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    signs: Tensor
    block: int

    kind = "hadamard"

    def __post_init__(self) -> None:
        if self.signs.ndim != 1 or self.signs.dtype != torch.int8:
            raise UsageError(
                f"signs must be (in,) int8, found {self.signs.dtype} {self.signs.ndim}-D"
            )
        check_whole("block", self.block, 1)
        if self.block & (self.block - 1) or self.width % self.block:
            raise UsageError(
                f"block must be a power of two that divides {self.width} channels, found "
                f"{self.block}"
            )

    @classmethod
    def random(cls, width: int, seed: int, *, block: int | None = None) -> Self:
        """With random signs; blocks as large as `width` allows, 64 for 704, unless told."""
        block = hadamard_block(width) if block is None else block
        return cls(random_signs(width, seed).to(torch.int8), block)

    @property
    def width(self) -> int:
        return self.signs.numel()

    def __call__(self, x: Tensor) -> Tensor:
        return hadamard_transform(x * self.signs.to(x.dtype), self.block)

    def _fold(self, rows: Tensor) -> Tensor:
        return self(rows)

    def _unfold(self, rows: Tensor) -> Tensor:
        return hadamard_transform(rows, self.block) * self.signs.to(rows.dtype)

    def state(self) -> State:
        meta = {"width": self.width, "block": self.block}
        return State(self.kind, meta, {"negative": pack((self.signs < 0).byte(), 1)})

    @classmethod
    def from_state(cls, state: State) -> Self:
        negative = unpack(state.arrays["negative"], 1, state.meta["width"])
        return cls(1 - 2 * negative.to(torch.int8), state.meta["block"])


@dataclass(frozen=True, eq=False)
class BlockDiagonal(InputTransform):
    """Multiplies each block of channels by a matrix of its own; one block is a full matrix.

    Attributes:
        matrix: (n, b, b) invertible, for n * b channels.

    Example:
        >>> swap = BlockDiagonal(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        >>> swap(torch.tensor([1.0, 2.0]))
        tensor([2., 1.])
    """

    matrix: Tensor

    kind = "block diagonal"

    def __post_init__(self) -> None:
        if self.matrix.ndim != 3 or self.matrix.shape[1] != self.matrix.shape[2]:
            raise UsageError(f"matrix must be (n, b, b), found {tuple(self.matrix.shape)}")
        object.__setattr__(self, "matrix", self.matrix.contiguous())  # products round alike

    @property
    def width(self) -> int:
        return self.matrix.shape[0] * self.matrix.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return self._from_blocks(self._blocks(x) @ self.matrix.to(x.dtype).mT, x.shape)

    def _fold(self, rows: Tensor) -> Tensor:
        matrix = self.matrix.double()
        try:
            with one_thread():
                folded = torch.linalg.solve(matrix, self._blocks(rows.double()), left=False)
        except RuntimeError as error:
            raise BadWeights("a block of the transform cannot be inverted") from error
        return self._from_blocks(folded.to(rows.dtype), rows.shape)

    def _unfold(self, rows: Tensor) -> Tensor:
        return self._from_blocks(self._blocks(rows) @ self.matrix.to(rows.dtype), rows.shape)

    def _blocks(self, x: Tensor) -> Tensor:
        """`x` (..., in) as (n, vectors, b)."""
        count, size, _ = self.matrix.shape
        return x.reshape(x.shape[:-1].numel(), count, size).transpose(0, 1)

    def _from_blocks(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        return blocks.transpose(0, 1).reshape(shape)

    def state(self) -> State:
        return State(self.kind, {}, {"matrix": self.matrix})

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(state.arrays["matrix"])


@dataclass(frozen=True, eq=False)
class Rotation(BlockDiagonal):
    """A block diagonal matrix that is orthonormal, so that it is undone by its transpose.

    Attributes:
        matrix: (n, b, b) orthonormal; `matrix[None]` of a full one.
    """

    kind = "rotation"

    def _fold(self, rows: Tensor) -> Tensor:
        return self(rows)


@dataclass(frozen=True, eq=False)
class Permutation(InputTransform):
    """Puts channel `order[c]` at place c.

    Attributes:
        order: (in,) int32, every channel once.

    Example:
        >>> Permutation(torch.tensor([2, 0, 1], dtype=torch.int32))(torch.tensor([5.0, 6.0, 7.0]))
        tensor([7., 5., 6.])
    """

    order: Tensor

    kind = "permutation"

    def __post_init__(self) -> None:
        if self.order.ndim != 1 or self.order.dtype != torch.int32:
            raise UsageError(f"order must be (in,) int32, found {self.order.dtype}")

    @property
    def width(self) -> int:
        return self.order.numel()

    def __call__(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.order)

    def _fold(self, rows: Tensor) -> Tensor:
        return self(rows)

    def _unfold(self, rows: Tensor) -> Tensor:
        return rows.index_select(-1, self.order.argsort())

    def state(self) -> State:
        return State(self.kind, {}, {"order": self.order})

    @classmethod
    def from_state(cls, state: State) -> Self:
        order = state.arrays["order"]
        expected = torch.arange(order.numel(), dtype=order.dtype)
        if not torch.equal(order.sort().values, expected.to(order.device)):
            raise UsageError("a permutation names every channel once")
        return cls(order)


@dataclass(frozen=True, eq=False)
class Chain(InputTransform):
    """One transform after another.

    Attributes:
        parts: the first is applied first; at least one, all of the same width.
    """

    parts: tuple[InputTransform, ...]

    kind = "chain"

    def __post_init__(self) -> None:
        if len({part.width for part in self.parts}) != 1:
            raise UsageError(
                f"a chain of widths {[part.width for part in self.parts]} does not hold"
            )

    @property
    def width(self) -> int:
        return self.parts[0].width

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def _fold(self, rows: Tensor) -> Tensor:
        for part in self.parts:
            rows = part._fold(rows)
        return rows

    def _unfold(self, rows: Tensor) -> Tensor:
        for part in reversed(self.parts):
            rows = part._unfold(rows)
        return rows

    def state(self) -> State:
        return State(self.kind, {}, parts={str(i): p.state() for i, p in enumerate(self.parts)})

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(nested_row(state, InputTransform))  # type: ignore[type-abstract]


for _kind in (ChannelScale, Hadamard, BlockDiagonal, Rotation, Permutation, Chain):
    register_kind(_kind)
