"""`Method`: hyper-parameters as a frozen dataclass whose call makes a model smaller.

`LayerMethod` sees one weight at a time and leaves the streaming to the runner; most methods are one
of these and little more than their mathematics. `BlockMethod` sees a block of the model with the
sequences before it, `ModelMethod` the whole model. Methods of the first two kinds make chains.
"""

import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from laconic.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from laconic.calibrate.calibration import Calibration
    from laconic.calibrate.layer_stats import LayerStats
    from laconic.calibrate.statistics import Statistic
    from laconic.calibrate.steps import BlockView
    from laconic.models.source import ModelSource
    from laconic.progress import Progress
    from laconic.tensors import CompressedTensor
    from laconic.tensors.stored import Record


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
        wants: statistics that calibration collects for it; may depend on the settings.
        changes_inputs: whether it puts a transform before layers, so that methods after it in a chain
            are given statistics of the transformed inputs.
    """

    paper: ClassVar[Paper]
    needs: ClassVar[Needs] = Needs.NOTHING
    taxonomy: ClassVar[tuple[str, ...]] = ()
    changes_inputs: ClassVar[bool] = False

    @property
    def wants(self) -> "tuple[Statistic, ...]":
        return ()

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
    """A method that sees one weight at a time.

    Attributes:
        by_rows: whether a sample of a weight's rows takes as many bytes a weight, and loses as much of
            them, as the whole; budgets are then measured on samples of large weights.
    """

    by_rows: ClassVar[bool] = True

    @abstractmethod
    def compress_weight(self, weight: "Tensor", stats: "LayerStats") -> "CompressedTensor":
        """The compressed value of `weight` (out, in, ...).

        Args:
            weight: dense; where a transform stands before the layer, as it stands behind it.
            stats: what `wants` asked for, and where to note fall-backs.
        """

    def revise(self, weight: "Tensor", record: "Record", stats: "LayerStats") -> "Record":
        """What a layer becomes that now is `record` and whose dense weight is `weight`.

        By default the dense weight is compressed, behind the transforms before it: grids that earlier
        methods chose are chosen anew. Zeros that they put stay. A method that builds on what those before it in the chain made (a correction of their error, a
        transform before them) overrides this.

        Raises:
            UsageError: the layer has a structure, such as factors, which would be lost.
        """
        value = self.compress_weight(stats.starting_from(record, weight), stats)
        return replace(record, weight=stats.masked(value))

    def options(self) -> tuple["LayerMethod", ...]:
        """The strengths at which a budget may use this method, weakest first; itself by default."""
        return (self,)

    def between(self, other: Self, share: float) -> Self | None:
        """The method at a strength between two of its options, where it has such; None by default.

        Args:
            other: the next stronger option.
            share: of the way to it, 0 to 1; sizes grow evenly with it, errors by equal factors.
        """
        return None


class BlockMethod(Method):
    """A method that sees a block of the model, and the sequences before it."""

    @property
    def follows_dense(self) -> bool:
        """Whether it must be given the sequences of the dense model as well; no by default."""
        return False

    @abstractmethod
    def revise_block(self, view: "BlockView") -> None:
        """Installs in `view.live` what the block's layers become."""


class ModelMethod(Method):
    """A method that sees the whole model, and says what is to be done with it."""

    @abstractmethod
    def plan(
        self, source: "ModelSource", calibration: "Calibration | None",
        *, device: str = "cpu", progress: "Progress | None" = None,
    ) -> "ModelPlan":  # fmt: skip
        """What is to be done with `source`, which is not changed."""


@dataclass(frozen=True)
class ModelPlan:
    """What a `ModelMethod` found.

    Attributes:
        methods: by layer name, what each layer is compressed with; the others stay as they are.
        edits: changes of the structure, as `laconic.models.edits` replays them, made first.
        notes: for the report.
        also: layers outside of the blocks that `methods` names, as `laconic.compress` takes them.
    """

    methods: Mapping[str, LayerMethod] = field(default_factory=dict)
    edits: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(text: str, kind: Any, name: str) -> Any:
    """`text` as a value of type `kind`; unions are tried in order."""
    if get_origin(kind) in (Union, UnionType):
        members = sorted(get_args(kind), key=lambda member: member is not type(None))
        for member in members:  # "none" is a word, but where none may be given it is meant
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
