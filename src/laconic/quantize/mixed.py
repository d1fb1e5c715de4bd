"""Mixed: one budget over the formats of several methods."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.spelling import build, spell
from laconic.tensors import CompressedTensor
from laconic.tensors.stored import Record

IN_MEMORY = "gptq gptvq:dim=2 gptvq:dim=4"  # what `--formats auto` stands for, by what is short
IN_FILES = f"ecgptq {IN_MEMORY}"


@dataclass(frozen=True)
class Mixed(LayerMethod):
    """Gives every layer the format, of several methods', that loses least within a budget.

    For `--budget`: every strength of every method is tried on every layer, bytes are counted as they will
    be stored or stay in memory, with codebooks, scales, masks and transforms, and a knapsack gives each
    layer its own.

    Args:
        formats: methods of layers with their settings, `NAME:KEY=VALUE,KEY=VALUE`, set apart by spaces.
        chosen: the one of a layer, spelled alike; a budget fills it in.

    Example:
        >>> len(Mixed("rtn fp").options())
        18
    """

    formats: str = IN_MEMORY
    chosen: str = ""

    paper = Paper(None, "Mixed formats under one budget", 2026)
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "mixed precision", "allocation")

    def __post_init__(self) -> None:
        for method in (*self._methods(), *([self._method()] if self.chosen else [])):
            if not isinstance(method, LayerMethod) or isinstance(method, Mixed):
                raise UsageError(
                    f"formats are of methods that see one layer, found {spell(method)}: take some of gptq, "
                    "ecgptq, gptvq, aqlm, nowag-vq, obr, fp, bcq, rtn"
                )
            if method.changes_inputs:
                raise UsageError(
                    f"{spell(method)} is no format: put it before mixed in a recipe instead"
                )
        if not self._methods():
            raise UsageError("formats names no method")

    @property
    def by_rows(self) -> bool:  # type: ignore[override]
        """Whether samples of rows tell the bytes and errors of all: of every format that may be chosen."""
        methods = [self._method()] if self.chosen else self._methods()
        return all(method.by_rows for method in methods)

    @property
    def wants(self) -> tuple[Statistic, ...]:
        methods = [self._method()] if self.chosen else self._methods()
        return tuple(dict.fromkeys(s for method in methods for s in method.wants))

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) in the format that was chosen for it."""
        return self._method().compress_weight(weight, stats)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """What the chosen method makes of `record`."""
        return self._method().revise(weight, record, stats)

    def options(self) -> tuple[Self, ...]:
        """All strengths of all formats."""
        found = [option for method in self._methods() for option in method.options()]
        return tuple(replace(self, chosen=spell(option)) for option in found)

    def between(self, other: Self, share: float) -> Self | None:
        """Between two strengths of one method, where it has such."""
        ours, theirs = self._method(), other._method()
        if type(ours) is not type(theirs):
            return None
        found = ours.between(theirs, share)
        return None if found is None else replace(self, chosen=spell(found))

    def _methods(self) -> list[Any]:
        return [_made(spec) for spec in self.formats.split()]

    def _method(self) -> Any:
        if not self.chosen:
            raise UsageError("mixed chooses formats by a budget: give --budget, such as 2.6bit")
        return _made(self.chosen)


@cache
def _made(spec: str) -> Any:
    """What `spec` spells, made once: a budget asks for it again and again."""
    return build(spec)
