"""Searches on the true loss of a whole model: over the strength of each layer, and over depth.

    layers at every strength --> live model <--swap-- offspring of one parent
                                    |  answers            ^
                                    v                     |
                       KL from the dense answers --> selection by stages

Sums of layer errors do not order models: dropping more can lose less. So candidates are measured
whole, most of them on very few tokens (EvoPress, Sieberling et al., 2025, arXiv 2410.14649).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from laconic.allocate.depth import DepthSpace
from laconic.allocate.evolution import Evolution, State, evolve
from laconic.allocate.fitness import DenseKL, LiveModel
from laconic.allocate.levels import Count, Database, LevelSpace, S, by_layer
from laconic.calibrate.calibration import Calibration
from laconic.models.edits import Switch, droppable
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress

INITIAL = 64  # first states that are tried where there is no uniform one

Unit = Literal["sublayer", "block"]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Effort:
    """How long a search looks.

    Attributes:
        generations: how many.
        offspring: states a generation.
        survivors: of each stage, 1 at the end.
        tokens: of each stage; examples for classifiers. More than there are means all.
        seed: the same seed gives the same result.
        top: most likely classes that count in the divergence; 0 for all.
    """

    generations: int
    offspring: int
    survivors: tuple[int, ...]
    tokens: tuple[int, ...]
    seed: int = 0
    top: int = 0


@dataclass(frozen=True)
class Found(Generic[T]):
    """What a search found.

    Attributes:
        chosen: the result.
        evolution: how it went.
        loss: mean divergence from the dense answers on all sequences that were searched on, nats.
        held_out: the same on those that were not; None where there are none.
        spent: what the state costs, as its space counts.
    """

    chosen: T
    evolution: Evolution
    loss: float
    held_out: float | None
    spent: float

    def of(self, chosen: U) -> "Found[U]":
        """The same with another form of the result."""
        return Found(chosen, self.evolution, self.loss, self.held_out, self.spent)

    def note(self, what: str) -> str:
        """A sentence for the report."""
        unseen = "" if self.held_out is None else f", {self.held_out:.4g} on sequences held out"
        looked = self.evolution.history[-1]
        return (
            f"{what}: KL from the dense answers {self.loss:.4g} nats{unseen}; "
            f"{looked.evaluations} states, {looked.samples} samples measured"
        )


def search_levels(
    source: ModelSource, strengths: Sequence[S], calibration: Calibration,
    *, bits: float, effort: Effort, count: Count = "codes", folder: Path | None = None,
    device: str = "cpu", progress: Progress = SILENT,
) -> Found[dict[str, S]]:  # fmt: skip
    """Chooses a strength for each layer of the blocks.

    Args:
        source: the model; not changed.
        strengths: what a layer may be compressed with, such as `RTN().options()`.
        calibration: sequences; those that methods are fitted to are searched on.
        bits: average over the weights, by `count`.
        effort: of the search.
        count: `codes`: bits of integer codes, met exactly. `stored` and `resident`: all that a layer
            takes in a file or in memory; an upper limit.
        folder: for the compressed layers and the search's log, so that a killed search goes on; in
            memory if there is none.
        device: where to compute.
        progress: follows the search.

    Returns:
        The strength of each layer by name, and how the search went; `spent` is in bits.

    Raises:
        BudgetError: `bits` is outside of what the strengths reach.
        DataError: there are no sequences, or the model cannot take them.
    """
    made = Database(
        source, strengths, calibration=calibration, device=device, progress=progress,
        folder=None if folder is None else folder / "layers",
    )  # fmt: skip
    model = LiveModel(source, device)
    space = LevelSpace(
        model, made.options(count, strengths), lambda name, choice: made.record(name, choice[0]),
        bits=bits, weights=sum(made.weights.values()), exact=count == "codes",
    )  # fmt: skip
    found = _search(model, space, calibration, effort, folder, progress)
    return found.of(by_layer(space.choices(found.chosen)))


def search_depth(
    source: ModelSource, calibration: Calibration,
    *, drop: int, unit: Unit = "sublayer", effort: Effort | None = None, protect: int = 0,
    folder: Path | None = None, device: str = "cpu", progress: Progress = SILENT,
) -> Found[tuple[str, ...]]:  # fmt: skip
    """Chooses what to drop: `drop` attentions and `drop` MLPs, or `drop` whole blocks.

    Args:
        source: a model of an architecture that `laconic.models.edits` knows; not changed.
        calibration: sequences; those that methods are fitted to are searched on.
        drop: how many blocks, or of each kind of sublayer.
        unit: `sublayer` or `block`.
        effort: of the search; the paper's for so many units by default.
        protect: blocks at each end that stay whole.
        folder: for the search's log.
        device: where to compute.
        progress: follows the search.

    Returns:
        Paths in order of computation, as `laconic.models.edits.drop` takes them.

    Raises:
        BudgetError: so many cannot be dropped.
        DataError: there are no sequences, or the model cannot take them.
        UnsupportedModel: another architecture.
    """
    model = LiveModel(source, device)
    kinds = ("block",) if unit == "block" else ("attention", "mlp")
    units = [u for u in droppable(model.module) if u.kind in kinds]
    blocks = 1 + max(u.block for u in units)
    ends = [i for i, u in enumerate(units) if not protect <= u.block < blocks - protect]
    switches = [Switch(model.module, u.path) for u in units]
    present = [True] * len(units)

    def place(state: State) -> None:
        for i, level in enumerate(state):
            stays = bool(level) or i in space.protected
            if present[i] != stays:
                switches[i].set(stays)
                present[i] = stays

    space = DepthSpace([u.kind for u in units], drop, place=place, protected=ends)
    found = _search(
        model, space, calibration, effort or depth_effort(blocks, drop), folder, progress
    )
    return found.of(tuple(units[i].path for i in space.dropped(found.chosen)))


def depth_effort(
    blocks: int, drop: int, *, generations: int = 0, offspring: int = 32, tokens: int = 1 << 15,
    seed: int = 0,
) -> Effort:  # fmt: skip
    """The paper's effort for structure: k (n - k) / 1.5 generations unless given, two stages."""
    usual = max(1, math.ceil(drop * (blocks - drop) / 1.5))
    survivors = (max(1, offspring // 16), 1)
    return Effort(generations or usual, offspring, survivors, (max(1, tokens // 16), tokens), seed)


def level_effort(
    *, generations: int = 150, offspring: int = 128, tokens: int = 1 << 17, seed: int = 0
) -> Effort:
    """The paper's effort for strengths: three stages of rising samples, an eighth, a quarter, one."""
    survivors = (max(1, offspring // 8), max(1, offspring // 32), 1)
    stages = (max(1, tokens // 64), max(1, tokens // 8), tokens)
    return Effort(generations, offspring, survivors, stages, seed)


def _search(
    model: LiveModel, space: LevelSpace | DepthSpace, calibration: Calibration, effort: Effort,
    folder: Path | None, progress: Progress,
) -> Found[State]:  # fmt: skip
    fitted, unseen = ([calibration.inputs[i] for i in part] for part in _parts(calibration))
    fitness = DenseKL(model.module, fitted, top=effort.top, device=model.device, progress=progress)
    other = DenseKL(model.module, unseen, top=effort.top, device=model.device) if unseen else None
    evolution = evolve(
        space, fitness, generations=effort.generations, offspring=effort.offspring,
        survivors=effort.survivors, samples=[min(t, fitness.samples) for t in effort.tokens],
        initial=INITIAL, seed=effort.seed, progress=progress,
        log=None if folder is None else folder / "search.jsonl",
    )  # fmt: skip
    state = evolution.state
    held_out = None if other is None else other(state, other.samples, 0)
    loss = fitness(state, fitness.samples, 0)
    return Found(state, evolution, loss, held_out, space.spent(state))


def _parts(calibration: Calibration) -> tuple[range, range]:
    return calibration.fitted, calibration.held_out
