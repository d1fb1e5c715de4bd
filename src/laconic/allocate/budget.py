"""`Budget`: how small, in the unit that the user thinks in."""

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from laconic.errors import BudgetError

EXAMPLES = "4bit, 25%, 1.5GB, 0.7x params, 0.6x flops or 20ms"


class Unit(Enum):
    """What a budget counts; the definitions are those of docs/measure.md."""

    BITS = "bit"  # stored bits per weight over the tensors that the method touches
    SHARE = "%"  # of the whole artefact's dense bytes that is kept
    BYTES = "bytes"  # stored bytes of the whole artefact
    PARAMS = "x params"  # of the touched blocks' parameters
    FLOPS = "x flops"  # of the touched blocks' operations
    LATENCY = "ms"  # of a forward pass


_SIZES = {
    "b": 1,
    "bytes": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_PATTERN = re.compile(
    r"\s*([0-9]*\.?[0-9]+)\s*(x\s*params|x\s*flops|[a-z%]+)\s*(\sresident\s*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Budget:
    """An upper limit.

    Attributes:
        amount: in units of `unit`; shares as fractions of 1.
        unit: see `Unit`.
        resident: whether bits and bytes are those in memory instead of those in files.

    Example:
        >>> Budget.parse("25%")
        Budget(amount=0.25, unit=<Unit.SHARE: '%'>, resident=False)
        >>> str(Budget.parse("1.5 GB"))
        '1500000000 bytes'
    """

    amount: float
    unit: Unit
    resident: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `4bit`, `25%`, `1.5GB`, `0.7x params`, `0.6x flops` or `20ms`.

        The first three count bytes in files, or with `resident` behind them, as in `4bit resident`, those in
        memory.

        Raises:
            BudgetError: anything else, or an amount that is not above zero.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise BudgetError(f"cannot read the budget {text!r}; give it as {EXAMPLES}")
        if match[3]:
            return replace(cls.parse(text[: match.start(3)]), resident=True)
        amount, unit = float(match[1]), re.sub(r"\s", "", match[2].lower())
        if amount <= 0:
            raise BudgetError(f"the budget {text!r} leaves nothing; give an amount above zero")
        if unit in ("bit", "bits"):
            return cls(amount, Unit.BITS)
        if unit == "%":
            return cls(amount / 100, Unit.SHARE)
        if unit in _SIZES:
            return cls(amount * _SIZES[unit], Unit.BYTES)
        if unit in ("xparams", "xflops"):
            return cls(amount, Unit.PARAMS if unit == "xparams" else Unit.FLOPS)
        if unit == "ms":
            return cls(amount, Unit.LATENCY)
        raise BudgetError(f"unknown unit in the budget {text!r}; give it as {EXAMPLES}")

    def __post_init__(self) -> None:
        if self.resident and self.unit not in (Unit.BITS, Unit.SHARE, Unit.BYTES):
            raise BudgetError(
                f"a budget in {self.unit.value.strip('x ')} is the same in memory and in files"
            )

    def __str__(self) -> str:
        where = " resident" if self.resident else ""
        if self.unit is Unit.SHARE:
            return f"{100 * self.amount:g}%{where}"
        if self.unit is Unit.BYTES:
            return f"{self.amount:.0f} bytes{where}"
        return f"{self.amount:g}{self.unit.value}{where}"
