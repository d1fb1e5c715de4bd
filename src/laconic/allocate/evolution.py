"""Evolutionary search: one parent, many offspring, and more data only for those that look good.

    parent --mutate--> offspring --T1 samples--> best --T2--> ... --T_last, with the parent--> parent

A `Space` says what may be changed and keeps the budget exactly; a `Fitness` measures. Everything
that searches over depth, bits, ranks, experts or variants gives these two and shares the rest
(EvoPress, Sieberling et al., 2025, arXiv 2410.14649).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np

from laconic.allocate.journal import Journal, fingerprint
from laconic.errors import LaconicError, UsageError
from laconic.progress import SILENT, Progress

State = tuple[int, ...]  # a level for each unit

ATTEMPTS = 20  # mutations for each offspring that is wanted, before a space counts as exhausted
INITIAL, SELECTION = 0, 1  # what a seed is for


class Space(Protocol):
    """What a search may change: `n` units, each at one of its levels, within a budget.

    A space keeps the budget in every state that it makes, and refuses others by `holds`.
    """

    @property
    def n(self) -> int:
        """How many units there are."""
        ...

    def levels(self, unit: int) -> int:
        """How many levels `unit` has; they are numbered from 0."""
        ...

    def cost(self, unit: int, level: int) -> float:
        """What `unit` costs at `level`; infinity where there is no such level."""
        ...

    def spent(self, state: State) -> float:
        """What `state` costs; the sum of its units' costs, unless they depend on each other."""
        ...

    def holds(self, state: State) -> bool:
        """Whether `state` is within the budget and all other limits."""
        ...

    def initial(self, rng: np.random.Generator) -> State:
        """A state to begin with, within the budget."""
        ...

    def mutate(self, rng: np.random.Generator, state: State) -> State:
        """A state near `state` that costs the same; `state` itself where none was found."""
        ...

    def apply(self, state: State) -> None:
        """Makes the model be in `state`; swaps only what differs from where it is."""
        ...


class Fitness(Protocol):
    """How good the model is in the state that was just applied."""

    def __call__(self, state: State, samples: int, seed: int) -> float:
        """The loss on `samples` samples drawn by `seed`: the less, the better.

        The same arguments must give the same number: a search that goes on where it stopped relies
        on it. `state` is what the model is in, for those that keep values.
        """
        ...


@dataclass(frozen=True)
class Generation:
    """What one generation led to.

    Attributes:
        number: from 0, the choice of the first parent.
        state: the parent after it.
        fitness: of that parent on the generation's last samples. Generations draw different samples
            (unless all are used): do not compare them closely.
        spent: what the state costs.
        evaluations: how many states were measured up to here, all stages.
        samples: how many samples that took.
    """

    number: int
    state: State
    fitness: float
    spent: float
    evaluations: int
    samples: int


@dataclass
class Evolution:
    """What a search found.

    Attributes:
        state: the best.
        fitness: its loss, on the last stage's samples of the last generation.
        history: one entry for each generation, the first one included.
    """

    state: State
    fitness: float
    history: list[Generation] = field(default_factory=list)


def evolve(
    space: Space, fitness: Fitness,
    *, generations: int, offspring: int, survivors: Sequence[int] = (1,),
    samples: Sequence[int] = (1,), initial: int = 1, seed: int = 0, log: Path | None = None,
    progress: Progress = SILENT,
) -> Evolution:  # fmt: skip
    """Searches `space` for the state of least loss.

    In every generation `offspring` different mutations of the parent are measured on `samples[0]`
    samples, the best `survivors[0]` of them on `samples[1]`, and so on. The parent joins in the last
    stage only, on that stage's samples, and stays unless a survivor is better. All states of a stage
    see the same samples.

    Args:
        space: what may be changed. At the end it is in the best state.
        fitness: the loss.
        generations: how many; a log of fewer can be gone on with.
        offspring: states a generation; fewer where the space has no more.
        survivors: of each stage, falling, 1 at the end.
        samples: of each stage, rising; tokens or examples, as `fitness` counts.
        initial: different first states to draw; the best on `samples[0]` becomes the first parent.
        seed: >= 0; the same seed gives the same result.
        log: JSON lines, one for each measurement. What it holds is not measured again: a search that
            was killed goes on and ends as if it had not been.
        progress: follows the generations.

    Raises:
        UsageError: numbers that make no search, or a log of another one.
        CorruptFile: a damaged log.
        BudgetError: the space has no state within its budget.

    Example:
        >>> from laconic.allocate.spaces import TableSpace
        >>> space = TableSpace(np.array([[0, 1]] * 6), budget=2)  # two of six units stay
        >>> loss = lambda state, samples, seed: float(sum(i * s for i, s in enumerate(state)))
        >>> evolve(space, loss, generations=10, offspring=4, seed=1).state
        (1, 1, 0, 0, 0, 0)
    """
    _check(generations, offspring, survivors, samples, initial, seed)
    header = {
        "seed": seed, "offspring": offspring, "survivors": list(survivors),
        "samples": list(samples), "initial": initial, "space": fingerprint(space, fitness),
    }  # fmt: skip
    with Journal(log, header) as journal:
        trial = _Trial(space, fitness, journal, seed)
        parent, value = trial.first(initial, samples[0])
        history = [trial.entry(0, parent, value)]
        for number in progress.track(range(1, generations + 1), "searching"):
            children = trial.offspring(number, parent, offspring)
            if not children:
                break
            parent, value = trial.select(number, parent, children, survivors, samples)
            history.append(trial.entry(number, parent, value))
    space.apply(parent)
    return Evolution(parent, value, history)


def brute_force(
    space: Space, fitness: Fitness, *, samples: int, seed: int = 0, limit: int = 4096
) -> dict[State, float]:
    """The loss of every state within the budget, least first: what a search should find.

    Args:
        space: a small one. At the end it is in the best state.
        fitness: the loss.
        samples: for each state.
        seed: of the samples, the same for all.
        limit: states to measure at most.

    Raises:
        UsageError: there are more, or none.
    """
    total = float(np.prod([float(space.levels(i)) for i in range(space.n)]))
    if total > 1000 * limit:
        raise UsageError(f"{total:.3g} states are too many to go through")
    states = [
        s for s in product(*(range(space.levels(i)) for i in range(space.n))) if space.holds(s)
    ]
    if not 0 < len(states) <= limit:
        raise UsageError(
            f"{len(states)} states hold the budget; between 1 and {limit} are expected"
        )
    losses = {}
    for state in states:
        space.apply(state)
        losses[state] = fitness(state, samples, seed)
    ranked = dict(sorted(losses.items(), key=lambda item: item[1]))
    space.apply(next(iter(ranked)))
    return ranked


class _Trial:
    """Measures states, counts and logs that, and draws and selects them."""

    def __init__(self, space: Space, fitness: Fitness, journal: Journal, seed: int) -> None:
        self.space, self.fitness, self.journal, self.seed = space, fitness, journal, seed
        self.evaluations = self.samples = 0

    def entry(self, number: int, state: State, value: float) -> Generation:
        spent = self.space.spent(state)
        return Generation(number, state, value, spent, self.evaluations, self.samples)

    def first(self, count: int, samples: int) -> tuple[State, float]:
        """The best of `count` different first states."""
        rng = np.random.default_rng([self.seed, 0, INITIAL])
        found: dict[State, None] = {}
        for _ in range(ATTEMPTS * count):
            found.setdefault(self.space.initial(rng))
            if len(found) == count:
                break
        return self.best(0, 0, list(found), 1, samples)[0]

    def offspring(self, number: int, parent: State, count: int) -> list[State]:
        """Up to `count` different mutations of `parent`."""
        rng = np.random.default_rng([self.seed, number, INITIAL])
        found: dict[State, None] = {}
        for _ in range(ATTEMPTS * count):
            child = self.space.mutate(rng, parent)
            if child != parent:
                found.setdefault(child)
            if len(found) == count:
                break
        return list(found)

    def select(
        self, number: int, parent: State, children: list[State], survivors: Sequence[int],
        samples: Sequence[int],
    ) -> tuple[State, float]:  # fmt: skip
        """The best of parent and children, by stages."""
        for stage, (keep, amount) in enumerate(zip(survivors, samples)):
            last = stage == len(samples) - 1
            field = [parent, *children] if last else children  # of equals the parent stays
            ranked = self.best(number, stage, field, keep, amount)
            children = [state for state, _ in ranked]
        return ranked[0]

    def best(
        self, number: int, stage: int, states: list[State], keep: int, samples: int
    ) -> list[tuple[State, float]]:
        """The `keep` states of least loss on one draw of samples; of equals the first."""
        draw = np.random.SeedSequence([self.seed, number, SELECTION, stage]).generate_state(1)
        losses = [(s, self.measure(number, stage, s, samples, int(draw[0]))) for s in states]
        return sorted(losses, key=lambda item: item[1])[:keep]

    def measure(self, number: int, stage: int, state: State, samples: int, seed: int) -> float:
        """The loss of `state`, out of the log where it is there; infinity if it is not a number."""
        self.evaluations += 1
        self.samples += samples
        known = self.journal.find(number, stage, state)
        if known is not None:
            return known
        if not self.space.holds(state):
            raise LaconicError(f"{type(self.space).__name__} made a state over its budget: {state}")
        self.space.apply(state)
        value = float(self.fitness(state, samples, seed))
        value = value if np.isfinite(value) else np.inf
        self.journal.add(number, stage, state, samples, self.space.spent(state), value)
        return value


def _check(
    generations: int, offspring: int, survivors: Sequence[int], samples: Sequence[int],
    initial: int, seed: int,
) -> None:  # fmt: skip
    if generations < 0 or offspring < 1 or initial < 1 or seed < 0:
        raise UsageError(
            "generations and seed must be 0 or more, offspring and initial 1 or more, found "
            f"{generations}, {seed}, {offspring}, {initial}"
        )
    if len(survivors) != len(samples) or not samples or min(samples) < 1:
        raise UsageError(f"survivors {survivors} and samples {samples} must be of the same stages")
    if survivors[-1] != 1 or list(survivors) != sorted(survivors, reverse=True):
        raise UsageError(f"survivors must fall to 1, found {tuple(survivors)}")
    if list(samples) != sorted(samples):
        raise UsageError(f"samples must rise from stage to stage, found {tuple(samples)}")
