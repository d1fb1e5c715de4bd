"""`Method`: hyper-parameters as a frozen dataclass whose call makes a model smaller.

`LayerMethod` sees one weight at a time and leaves the streaming to the runner; most methods are one
of these and little more than their mathematics.
"""

import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from laconic.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from laconic.tensors import CompressedTensor


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Attributes:
        row: of the catalogue; None for baselines that are nobody's paper.
        title: of the paper.
        year: of its first version.
        arxiv: its number there, or an empty string.
    """

    row: int | None
    title: str
    year: int
    arxiv: str = ""


class Needs(Enum):
    """What a method must be given besides the weights."""

    NOTHING = "nothing"
    INPUTS = "calibration inputs"
    GRADIENTS = "gradients"
    TRAINING = "training"


class Method(ABC):
    """Base of all methods; subclasses are frozen dataclasses.

    Attributes:
        paper: its source.
        needs: what it must be given.
        taxonomy: the survey's terms for it, such as ("quantization", "post-training").
    """

    paper: ClassVar[Paper]
    needs: ClassVar[Needs] = Needs.NOTHING
    taxonomy: ClassVar[tuple[str, ...]] = ()

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as JSON values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A method from settings that may be text, as the command line has them.

        Raises:
            UsageError: an unknown setting (with the nearest known one) or a value of a wrong type.
        """
        types = typing.get_type_hints(cls)
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        values = {}
        for name, value in settings.items():
            if name not in known:
                raise UsageError(
                    f"{cls.__name__} has no setting {name!r}; {did_you_mean(name, known)}"
                )
            values[name] = _convert(value, types[name], name) if isinstance(value, str) else value
        absent = [f.name for f in fields(cls) if _is_required(f) and f.name not in values]  # type: ignore[arg-type]
        if absent:
            raise UsageError(f"{cls.__name__} needs the setting {absent[0]!r}")
        return cls(**values)


class LayerMethod(Method):
    """A method that sees one weight at a time."""

    @abstractmethod
    def compress_weight(self, weight: "Tensor") -> "CompressedTensor":
        """The compressed value of `weight` (out, in, ...)."""

    def options(self) -> tuple["LayerMethod", ...]:
        """The strengths at which a budget may use this method, weakest first; itself by default."""
        return (self,)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(text: str, kind: Any, name: str) -> Any:
    """`text` as a value of type `kind`; unions are tried in order."""
    if get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            try:
                return _convert(text, member, name)
            except UsageError:
                continue
        raise UsageError(f"{name}={text!r} is none of {_spell(kind)}")
    if get_origin(kind) is Literal:
        matches = [value for value in get_args(kind) if str(value) == text]
        if matches:
            return matches[0]
    elif kind is bool:
        if text.lower() in ("true", "yes", "1", "false", "no", "0"):
            return text.lower() in ("true", "yes", "1")
    elif kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            pass
    elif kind is type(None) and text.lower() == "none":
        return None
    raise UsageError(f"{name} takes {_spell(kind)}, found {text!r}")


def _spell(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_spell(member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(repr(value) for value in get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
        kind, "none" if kind is type(None) else str(kind)
    )
