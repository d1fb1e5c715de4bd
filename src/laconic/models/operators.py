"""Which operators of a transformer compute with integers, as an edit says it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from laconic.errors import UsageError, did_you_mean
from laconic.tensors.shift_quantizer import ShiftQuantizer

#: What can be made to compute with integers.
OPERATORS = ("attention", "softmax", "norm", "stream", "activation")


@dataclass(frozen=True)
class Operators:
    """Which operators compute with integers, and how their inputs are cut into blocks.

    Attributes:
        operators: of `OPERATORS`.
        bits: of inputs, 2 to 8.
        tokens: rows of a block.
        columns: of a block.
        stream: bits of the sums between sublayers, 2 to 16.
        weights: of attention: `row`, a shift for each row; `fixed`, the shift 8.
    """

    operators: tuple[str, ...] = OPERATORS
    bits: int = 8
    tokens: int = 1
    columns: int = 64
    stream: int = 8
    weights: str = "row"

    def __post_init__(self) -> None:
        for name in self.operators:
            if name not in OPERATORS:
                raise UsageError(f"no operator {name!r}; {did_you_mean(name, OPERATORS)}")
        if self.weights not in ("row", "fixed"):
            raise UsageError(f"weights must be 'row' or 'fixed', found {self.weights!r}")
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits must be 2 to 8, found {self.bits!r}")
        self.inputs(), self.sums()

    @classmethod
    def from_edit(cls, edit: Mapping[str, Any]) -> "Operators":
        """From an edit `{"op": "integer", ...}`; raises `UsageError` where it holds anything else."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in edit.items() if name != "op"}
        if unknown := set(values) - known:
            raise UsageError(f"unknown in an integer edit: {sorted(unknown)}")
        values["operators"] = tuple(values.get("operators", OPERATORS))
        return cls(**values)

    def edit(self) -> dict[str, Any]:
        """The edit that `laconic.models.edits` replays."""
        return {"op": "integer", **asdict(self), "operators": list(self.operators)}

    def inputs(self) -> ShiftQuantizer:
        """What rounds operands."""
        return ShiftQuantizer(self.bits, self.tokens, self.columns, search=1)

    def sums(self) -> ShiftQuantizer:
        """What rounds the stream between sublayers."""
        return ShiftQuantizer(self.stream, self.tokens, self.columns, search=1)

    @property
    def attention_name(self) -> str:
        """Of the attention function; everything that it needs to know is in it."""
        which = "-".join(o for o in ("attention", "softmax") if o in self.operators)
        return (
            f"laconic-int{self.bits}-{self.tokens}x{self.columns}-{self.weights}-{which or 'none'}"
        )
