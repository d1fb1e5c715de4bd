"""`CompressedTensor`: the value of a weight, in however few bytes; and what may stand before it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.errors import CorruptFile, UsageError, did_you_mean


@dataclass(frozen=True)
class State:
    """Everything that a compressed tensor is, as plain values: what is stored and nothing else.

    Attributes:
        kind: names the class that reads it.
        meta: JSON values: shape, dtype, settings.
        arrays: tensors; unsigned codes stand unpacked, one byte each, and are entropy coded at rest.
        parts: nested tensors, as in sums and stacks.
    """

    kind: str
    meta: dict[str, Any]
    arrays: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, "State"] = field(default_factory=dict)


class Stateful(ABC):
    """What can be turned into a `State` and back; the class is found by its `kind`."""

    kind: ClassVar[str]

    @abstractmethod
    def state(self) -> State:
        """The values that `from_state` needs to make an equal object."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: State) -> Self:
        """Inverse of `state`; raises `CorruptFile` if the values do not fit together."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What it occupies in memory, by attribute name."""

    @property
    def resident_bytes(self) -> int:
        """Bytes that the loaded object occupies while computing."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors().values())).device

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`; `self` where it is there already."""
        if self.device == torch.device(device):
            return self
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self.replace_tensors(moved)

    @abstractmethod
    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """A copy that holds `tensors` (as `tensors()` names them) in place of its own."""


class CompressedTensor(Stateful):
    """The value of a weight.

    A subclass gives `shape`, `dtype`, `dense`, and the four methods of `Stateful`; it gains exact
    byte counts, storage, and the modules that compute with it.

    Attributes:
        shape: of the dense weight, (out, in, ...).
        dtype: of the dense weight, as the model had it.
    """

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (*shape) as an ordinary tensor, of `dtype` or its own."""

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias` for x (..., in) and a two-dimensional weight (out, in).

        It is computed in the dtype of `x` and rounded once, as `nn.Linear` does.
        """
        return F.linear(x, self.dense(x.dtype), None if bias is None else bias.to(x.dtype))

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The rows (*index.shape, in) that `index` names, as an embedding looks them up.

        Raises:
            IndexError: a number below zero, or of a row that is not there.
        """
        return self.dense(dtype)[checked_index(index, self.shape[0])]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Torch's functions do not take it: `TypeError`.

        That this method exists makes torch's fused layers, which reach into their parts' weights,
        call the parts instead.
        """
        return NotImplemented

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    @property
    def format(self) -> str:
        """A short name for reports, such as `int4 g64`."""
        return self.kind

    @property
    def stored_bytes(self) -> int:
        """Bytes at rest, entropy coded, all side information included."""
        from laconic.tensors.stored import encode

        return len(encode(self))


class InputTransform(Stateful):
    """What a module applies to its input before it multiplies: a scale, a rotation, ..."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """`x` (..., in), transformed."""


def checked_index(index: Tensor, rows: int) -> Tensor:
    """`index`, once all its rows are known to exist; a GPU's own lookup checks without waiting."""
    if index.device.type == "cpu" and index.numel():
        least, most = int(index.min()), int(index.max())
        if least < 0 or most >= rows:
            raise IndexError(f"rows {least}..{most} of a table of {rows} were asked for")
    return index


#: What reading values that do not fit together may raise.
FAULTS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError,
    UsageError,
)  # fmt: skip
_KINDS: dict[str, type[Stateful]] = {}


def register_kind(cls: type[Stateful]) -> None:
    """Makes `cls` known to `from_state` under its `kind`."""
    if _KINDS.setdefault(cls.kind, cls) is not cls:
        raise UsageError(f"two classes claim the kind {cls.kind!r}: {_KINDS[cls.kind]} and {cls}")


def registered_kinds() -> dict[str, type[Stateful]]:
    """All kinds by name."""
    return dict(_KINDS)


def from_state(state: State) -> Stateful:
    """The object that `state` describes.

    Raises:
        CorruptFile: an unknown kind, or values that do not fit together.
    """
    if state.kind not in _KINDS:
        raise CorruptFile(f"unknown tensor kind {state.kind!r}; {did_you_mean(state.kind, _KINDS)}")
    try:
        return _KINDS[state.kind].from_state(state)
    except FAULTS as error:
        raise CorruptFile(f"a {state.kind} tensor is damaged: {error!r}") from error
