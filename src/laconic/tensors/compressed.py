"""`CompressedTensor`: the value of a weight, in however few bytes; and what may stand before it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar

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
        arrays: tensors; unsigned codes stand unpacked, as uint8 or uint16, and are entropy coded at
            rest.
        parts: nested values, as in sums and stacks.
    """

    kind: str
    meta: dict[str, Any]
    arrays: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, "State"] = field(default_factory=dict)


class Stateful(ABC):
    """What can be turned into a `State` and back; the class is found by its `kind`.

    A frozen dataclass: its tensors are its fields that hold tensors, states, other stateful values,
    or tuples of these.
    """

    kind: ClassVar[str]

    @abstractmethod
    def state(self) -> State:
        """The values that `from_state` needs to make an equal object."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: State) -> Self:
        """Inverse of `state`; raises `CorruptFile` if the values do not fit together."""

    def tensors(self) -> dict[str, Tensor]:
        """What it occupies in memory, by attribute name; `left.scale` is within `left`."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return dict(pair for name, value in named for pair in _leaves(name, value))

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

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """A copy that holds `tensors` (as `tensors()` names them) in place of its own."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        renewed = {name: _renewed(name, value, tensors) for name, value in named.items()}
        return replace(self, **renewed)  # type: ignore[type-var]


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in `value` with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Stateful):
        yield from ((f"{path}.{name}", tensor) for name, tensor in value.tensors().items())
    elif isinstance(value, State):
        for name, part in (*value.arrays.items(), *value.parts.items()):
            yield from _leaves(f"{path}.{name}", part)
    elif isinstance(value, tuple):
        for number, part in enumerate(value):
            yield from _leaves(f"{path}.{number}", part)


def _renewed(path: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """`value` with its tensors replaced by those at the same paths."""
    if isinstance(value, Tensor):
        return tensors[path]
    if isinstance(value, Stateful):
        inside = {n.removeprefix(f"{path}."): tensors[n] for n, _ in _leaves(path, value)}
        return value.replace_tensors(inside)
    if isinstance(value, State):
        arrays = {n: _renewed(f"{path}.{n}", array, tensors) for n, array in value.arrays.items()}
        parts = {n: _renewed(f"{path}.{n}", part, tensors) for n, part in value.parts.items()}
        return replace(value, arrays=arrays, parts=parts)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple(_renewed(f"{path}.{i}", part, tensors) for i, part in enumerate(value))
    return value


class CompressedTensor(Stateful):
    """The value of a weight.

    A subclass gives `shape`, `dtype`, `dense`, `state` and `from_state`; it gains exact byte counts,
    storage, and the modules that compute with it.

    Attributes:
        shape: of the dense weight, (out, in, ...).
        dtype: of the dense weight, as the model had it.
        multiplies_dense: whether, once it is decoded, multiplying by the whole value is best; False where
            parts of it do that, as factors do.
    """

    shape: torch.Size
    dtype: torch.dtype
    multiplies_dense: ClassVar[bool] = False

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
    """What a module applies to its input before it multiplies: an invertible matrix T (in, in).

    A subclass gives `width`, `__call__`, and both directions on rows of weights; the weight that
    stands behind it is `fold` of the original.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels that it takes and gives."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """`x` (..., in), transformed: each vector x becomes T x; in the dtype of `x`."""

    def fold(self, weight: Tensor) -> Tensor:
        """`W T^-1`, which applied to a transformed input gives what `weight` gives for the original.

        Args:
            weight: (out, in, ...); of a convolution, all its positions alike.

        Raises:
            UsageError: the weight has another number of input channels.
        """
        return self._along_inputs(weight, self._fold)

    def unfold(self, weight: Tensor) -> Tensor:
        """`W T` of a weight (out, in, ...), the inverse of `fold`."""
        return self._along_inputs(weight, self._unfold)

    def moment(self, moment: Tensor) -> Tensor:
        """The second moment `T H T^t` of the transformed input, from the input's own H (in, in)."""
        return self(self(moment).mT).mT

    @abstractmethod
    def _fold(self, rows: Tensor) -> Tensor:
        """`rows` (..., in) of a weight, float32 or float64, times T^-1."""

    @abstractmethod
    def _unfold(self, rows: Tensor) -> Tensor:
        """`rows` (..., in) of a weight, float32 or float64, times T."""

    def _along_inputs(self, weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        if weight.ndim < 2 or weight.shape[1] != self.width:
            raise UsageError(
                f"a {self.kind} of {self.width} channels does not fit a weight of shape "
                f"{tuple(weight.shape)}"
            )
        rows = weight.movedim(1, -1)
        wide = rows if rows.dtype == torch.float64 else rows.float()
        return function(wide).to(weight.dtype).movedim(-1, 1).contiguous()


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


T = TypeVar("T", bound=Stateful)


def nested(state: State, name: str, kind: type[T]) -> T:
    """The value that `state` holds as part `name`; `CorruptFile` if it is no `kind`."""
    value = from_state(state.parts[name])
    if not isinstance(value, kind):
        raise CorruptFile(f"part {name!r} is a {value.kind}, a {kind.__name__} is expected")
    return value


def nested_row(state: State, kind: type[T]) -> tuple[T, ...]:
    """The parts of `state` that are named 0, 1, 2, ..."""
    return tuple(nested(state, str(number), kind) for number in range(len(state.parts)))
