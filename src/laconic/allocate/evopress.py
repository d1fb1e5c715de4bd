"""EvoPress: which layer gets how many bits, or which blocks go, by search on the true loss."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from laconic.allocate.levels import Count
from laconic.allocate.searches import (
    Unit,
    depth_effort,
    level_effort,
    search_depth,
    search_levels,
)
from laconic.calibrate.calibration import Calibration
from laconic.errors import BudgetError, DataError, UsageError
from laconic.method import LayerMethod, ModelMethod, ModelPlan, Needs, Paper
from laconic.models.edits import drops
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.spelling import build

PAPER = Paper(
    20,
    "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search",
    2025,
    "2410.14649",
)


@dataclass(frozen=True)
class EvoPress(ModelMethod):
    """Searches the strength of every layer for the least loss of the whole model at given bits.

    Args:
        method: whose strengths are chosen from, such as `rtn`, or with settings `rtn:range=minmax`.
        bits: average over the weights of the blocks' layers.
        count: what the bits are: `codes`, of integer codes alone, met exactly; `stored`, all that is
            written, entropy coded; `resident`, all that is in memory. The last two are upper limits.
        generations: of the search; 150 in the paper.
        offspring: states a generation; 128 in the paper. An eighth of them is measured on more
            tokens, a quarter of these on all.
        tokens: of the last stage (131072 in the paper), or as many as there are; a 64th and an eighth
            of it in the first two.
        seed: 0 or more.
        folder: where compressed layers and the search's log are kept, so that a killed search goes
            on; nowhere if none is given.

    Example:
        >>> EvoPress(bits=2.5).settings()["method"]
        'rtn'
    """

    method: str = "rtn"
    bits: float = 3.0
    count: Count = "codes"
    generations: int = 150
    offspring: int = 128
    tokens: int = 1 << 17
    seed: int = 0
    folder: str | None = None

    paper = PAPER
    needs = Needs.INPUTS
    taxonomy = ("allocation", "post-training", "search", "mixed precision")

    def __post_init__(self) -> None:
        if not self.bits > 0:
            raise UsageError(f"bits must be above 0, found {self.bits!r}")
        if self.count not in get_args(Count):
            raise UsageError(f"count must be one of {get_args(Count)}, found {self.count!r}")
        _check_effort(self.generations, self.offspring, self.tokens, self.seed)

    def strengths(self) -> tuple[LayerMethod, ...]:
        """What a layer may be compressed with."""
        made = build(self.method)
        if not isinstance(made, LayerMethod) or len(made.options()) < 2:
            raise UsageError(
                f"{self.method} has no strengths to choose from; take a layer method, as rtn"
            )
        return made.options()

    def plan(
        self, source: ModelSource, calibration: Calibration | None,
        *, device: str = "cpu", progress: Progress | None = None,
    ) -> ModelPlan:  # fmt: skip
        """The strength of each layer."""
        effort = level_effort(
            generations=self.generations, offspring=self.offspring, tokens=self.tokens,
            seed=self.seed,
        )  # fmt: skip
        found = search_levels(
            source, self.strengths(), _given(calibration), bits=self.bits, effort=effort,
            count=self.count, folder=None if self.folder is None else Path(self.folder),
            device=device, progress=progress or SILENT,
        )  # fmt: skip
        return ModelPlan(found.chosen, notes=(found.note(f"evopress at {self.bits:g} bits"),))


@dataclass(frozen=True)
class EvoPressDepth(ModelMethod):
    """Searches which attentions and MLPs, or blocks, a model misses least, and drops them.

    Args:
        remove: share of the blocks, above 0 and below 1; of sublayers, the share of each kind. Rounded
            to the nearest whole number, halves down: 0.25 of 6 blocks is 1.
        unit: `sublayer`, attentions and MLPs one by one, or whole `block`.
        protect: blocks at each end that stay whole.
        generations: of the search; 0 for the paper's k (n - k) / 1.5, k of n being dropped.
        offspring: states a generation; a 16th of them is measured on all tokens.
        tokens: of the last stage, or as many as there are; a 16th of it in the first.
        seed: 0 or more.
        folder: where the search's log is kept, so that a killed search goes on.

    Example:
        >>> EvoPressDepth(remove=0.5).settings()["unit"]
        'sublayer'
    """

    remove: float = 0.25
    unit: Unit = "sublayer"
    protect: int = 0
    generations: int = 0
    offspring: int = 32
    tokens: int = 1 << 15
    seed: int = 0
    folder: str | None = None

    paper = PAPER
    needs = Needs.INPUTS
    taxonomy = ("pruning", "post-training", "search", "structured", "depth")

    def __post_init__(self) -> None:
        if not 0 < self.remove < 1:
            raise UsageError(f"remove must be above 0 and below 1, found {self.remove!r}")
        if self.unit not in get_args(Unit):
            raise UsageError(f"unit must be 'sublayer' or 'block', found {self.unit!r}")
        if self.protect < 0:
            raise UsageError(f"protect must be 0 or more, found {self.protect}")
        _check_effort(self.generations, self.offspring, self.tokens, self.seed)

    def plan(
        self, source: ModelSource, calibration: Calibration | None,
        *, device: str = "cpu", progress: Progress | None = None,
    ) -> ModelPlan:  # fmt: skip
        """What to drop, as edits."""
        blocks = len(source.blocks)
        drop = math.ceil(self.remove * blocks - 0.5)
        if not 0 < drop < blocks:
            raise BudgetError(f"{self.remove:g} of {blocks} blocks is {drop}: nothing or all")
        effort = depth_effort(
            blocks, drop, generations=self.generations, offspring=self.offspring,
            tokens=self.tokens, seed=self.seed,
        )  # fmt: skip
        found = search_depth(
            source, _given(calibration), drop=drop, unit=self.unit, effort=effort,
            protect=self.protect, folder=None if self.folder is None else Path(self.folder),
            device=device, progress=progress or SILENT,
        )  # fmt: skip
        kinds = ("blocks",) if self.unit == "block" else ("attentions", "MLPs")
        what = " and ".join(f"{drop} of {blocks} {kind}" for kind in kinds)
        note = found.note(f"evopress drops {what}: {', '.join(found.chosen)}")
        return ModelPlan(edits=tuple(drops(found.chosen)), notes=(note,))


def _check_effort(generations: int, offspring: int, tokens: int, seed: int) -> None:
    if generations < 0 or offspring < 1 or tokens < 1 or seed < 0:
        raise UsageError(
            "generations and seed must be 0 or more, offspring and tokens 1 or more, found "
            f"{generations}, {seed}, {offspring}, {tokens}"
        )


def _given(calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise DataError("the search measures the model on calibration sequences: give --data")
    return calibration
