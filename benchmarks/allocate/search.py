"""Who gets how much: exact allocation beside the Lagrangian, and EvoPress beside uniform levels.

Searches are scaled down so that all of this takes about ten minutes of one core: `WINDOWS` of
calibration text, `LEVELS` and `DEPTH` (20 generations of 24, at most 4096 tokens) instead of the
paper's 150 generations of 128 on 131072 tokens. What `laconic compress` searches by default is more.
Losses are compared on the quick slice (first 100 windows of text/valid.txt) whatever the slice is.
"""

import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import Bench
from laconic.allocate.depth import DepthSpace
from laconic.allocate.evolution import State, brute_force, evolve
from laconic.allocate.fitness import DenseKL, LiveModel
from laconic.allocate.knapsack import integer_knapsack, knapsack, solve, stepped_knapsack
from laconic.allocate.lagrangian import lagrangian, optimality_gap
from laconic.allocate.levels import Database, LevelSpace
from laconic.allocate.minimax import minimax
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.data import read_text, windows
from laconic.calibrate.runner import run_layers
from laconic.calibrate.statistics import SecondMoment
from laconic.calibrate.steps import BlockView
from laconic.measure.losses import Losses, language_batches, measure_losses
from laconic.measure.paired import bootstrap
from laconic.models.edits import Switch, droppable
from laconic.models.open import open_source
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.probing import measure_options, output_error
from laconic.quantize.rtn import RTN

CASES = 300  # random problems that are solved by going through everything
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)  # budgets, between the cheapest and the dearest choice
SEEDS = (0, 1, 2)
WINDOWS = {"depth": 32, "levels": 64, "moments": 32}  # first ones of text/train.txt
BEGINNING = 1 << 20  # characters of it that they are taken from
QUICK = 100  # windows of text/valid.txt
LEVELS = {"generations": 20, "offspring": 24, "survivors": (5, 1, 1), "samples": (256, 1024, 4096)}
DEPTH = {"generations": 8, "offspring": 6, "survivors": (3, 1)}
FIRST_STAGE = 256  # tokens in depth searches; the last stage takes all
GRID = tuple(RTN(bits=bits, group="row") for bits in (2, 3, 4))
BITS = 3.0


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    _random_problems(bench)
    _real_tables(bench)
    _depth(bench)
    _levels(bench)


def _random_problems(bench: Bench) -> None:
    """Every solver against all choices of small problems."""
    generator = np.random.default_rng(0)
    missed = {"knapsack": 0, "integer_knapsack": 0, "minimax": 0}
    over = 0
    for _ in range(CASES):
        items, options = int(generator.integers(1, 6)), int(generator.integers(2, 6))
        cost, error = generator.integers(1, 40, (2, items, options)).astype(float)
        rows = np.arange(items)
        least = cost.min(axis=1).sum()
        budget = float(generator.integers(least, cost.max(axis=1).sum() + 1))
        picks = [np.array(p) for p in product(range(options), repeat=items)]
        fitting = [p for p in picks if cost[rows, p].sum() <= budget]
        best_sum = min(error[rows, p].sum() for p in fitting)
        best_worst = min(error[rows, p].max() for p in fitting)
        for name, solver in (("knapsack", knapsack), ("integer_knapsack", integer_knapsack)):
            chosen = solver(cost, error, budget)
            missed[name] += error[rows, chosen].sum() != best_sum
            over += cost[rows, chosen].sum() > budget
        chosen = minimax(cost, error, budget)
        missed["minimax"] += error[rows, chosen].max() != best_worst
        over += cost[rows, chosen].sum() > budget
    bench.check(
        f"{CASES} random problems: dynamic programming and minimax find the optimum of brute force",
        not any(missed.values()) and over == 0, **missed, over_budget=over,
    )  # fmt: skip


def _real_tables(bench: Bench) -> None:
    """RTN's options on every layer of every model."""
    rows = []
    for name, model in bench.models().items():
        table = bench.cached(f"options {name}", lambda m=model: _table(m))
        cost, error = np.array(table["cost"]), np.array(table["error"])
        runs = [_allocate(cost, error, share) for share in SHARES]
        bench.check(
            f"{name}: dynamic programming loses no more than the Lagrangian at {len(SHARES)} budgets",
            all(r["exact"] <= r["lagrangian"] and r["slack"] == 0 and not r["over"] for r in runs),
            less_by=max(1 - r["exact"] / r["lagrangian"] for r in runs),
        )
        for share, run in zip(SHARES, runs):
            shown = [run[key] for key in ("lagrangian", "exact", "stepped")]
            rows.append([name, len(cost), share, *shown, run["gap"]])
    columns = ["model", "layers", "budget", "Lagrangian", "exact", "stepped", "gap known"]
    bench.table(
        "lost share of layer energy, times weights; the gap is the Lagrangian's distance to its bound",
        columns, rows,
    )  # fmt: skip


def _table(model: str) -> dict[str, Any]:
    table = measure_options(open_source(model), RTN())
    return {"cost": table.cost.tolist(), "error": table.error.tolist()}


def _allocate(cost: np.ndarray, error: np.ndarray, share: float) -> dict[str, Any]:
    least, most = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    budget, rows = least + share * (most - least), np.arange(len(cost))
    found = solve(cost, error, budget)
    chosen = {
        "lagrangian": lagrangian(cost, error, budget),
        "exact": found.chosen,
        "stepped": stepped_knapsack(cost, error, budget, steps=1 << 14),
    }
    lost = {name: float(error[rows, picks].sum()) for name, picks in chosen.items()}
    over = any(cost[rows, picks].sum() > budget for picks in chosen.values())
    gap = optimality_gap(cost, error, budget, chosen["lagrangian"])
    return {**lost, "over": over, "slack": found.slack, "gap": gap}


def _depth(bench: Bench) -> None:
    """Whole blocks: the search against going through all choices."""
    rows = []
    for name, model in bench.language_models().items():
        runs = bench.cached(f"depth {name}", lambda m=model: _drop_blocks(bench, m))
        for run in runs:
            bench.check(
                f"{name}: dropping {run['drop']} of {run['blocks']} blocks, the search finds the best "
                f"of {run['states']} choices with {len(SEEDS)} of {len(SEEDS)} seeds",
                all(loss == run["best"] for loss in run["found"]),
                best=run["best"], worst_seed=max(run["found"]),
            )  # fmt: skip
            rows.append([
                name, run["drop"], run["states"], str(run["dropped"]), run["best"], run["second"],
                str(run["alone"]), run["alone_loss"],
            ])  # fmt: skip
    columns = [
        "model", "dropped", "choices", "best blocks", "KL", "second best", "those best alone", "KL",
    ]  # fmt: skip
    bench.table(
        f"whole blocks, KL from the dense answers on {WINDOWS['depth']} windows; 'best alone' are the "
        "blocks whose single removal costs least",
        columns, rows,
    )  # fmt: skip


def _drop_blocks(bench: Bench, model: str) -> list[dict[str, Any]]:
    source = open_source(model)
    live = LiveModel(source)
    fitness = DenseKL(live.module, _calibration(bench, source, WINDOWS["depth"]).inputs)
    units = [u for u in droppable(live.module) if u.kind == "block"]
    switches = [Switch(live.module, unit.path) for unit in units]

    def place(state: State) -> None:
        for switch, level in zip(switches, state):
            switch.set(bool(level))

    runs: list[dict[str, Any]] = []
    for drop in (1, 2):
        space = DepthSpace(["block"] * len(units), drop, place=place)
        losses = brute_force(space, fitness, samples=fitness.samples)
        samples = (FIRST_STAGE, fitness.samples)
        found = [evolve(space, fitness, samples=samples, seed=s, **DEPTH) for s in SEEDS]
        ranked = list(losses)
        if drop == 1:
            order = [space.dropped(state)[0] for state in ranked]
        alone = sorted(order[:drop])
        alone_state = tuple(int(u not in alone) for u in range(len(units)))
        runs.append({
            "drop": drop, "blocks": len(units), "states": len(losses),
            "dropped": space.dropped(ranked[0]), "best": losses[ranked[0]],
            "second": losses[ranked[1]], "found": [f.fitness for f in found],
            "alone": alone, "alone_loss": losses[alone_state],
        })  # fmt: skip
    return runs


def _levels(bench: Bench) -> None:
    """Average bits: the search beside uniform levels and dynamic programming on layer errors."""
    rows = []
    for name, model in bench.language_models().items():
        run = bench.cached(f"levels {name}", lambda m=model: _search_levels(bench, m))
        for rival in ("uniform", "dp outputs"):
            low, high = run["against"][rival]["ci95"]
            bench.check(
                f"{name}: {BITS:g} bits a weight by EvoPress lose less than by {rival}",
                high < 0, excess=run["evopress"]["excess"], theirs=run[rival]["excess"],
                difference=run["against"][rival]["difference"], low=low, high=high,
            )  # fmt: skip
        bench.check(
            f"{name}: every state that was measured has exactly {BITS:g} bits a weight",
            run["spent"] == [BITS], states=run["states"],
        )  # fmt: skip
        bench.check(
            f"{name}: the same seed gives the same result, also after half of the log is lost",
            run["repeats"], generations=run["repeated"],
        )  # fmt: skip
        for label in ("uniform", "dp weights", "dp outputs", "evopress"):
            entry = run[label]
            rows.append(
                [name, label, *entry["layers"], entry["kl"], entry["excess"], entry["bits"]]
            )
    columns = ["model", "by", "2 bits", "3 bits", "4 bits", "KL", "excess nats", "bits"]
    bench.table(
        f"layers by bits of RTN per row at {BITS:g} code bits; KL on {WINDOWS['levels']} calibration "
        f"windows, excess loss on {QUICK} windows of text/valid.txt",
        columns, rows,
    )  # fmt: skip
    bench.note(
        f"level searches: {LEVELS['generations']} generations of {LEVELS['offspring']} on "
        f"{LEVELS['samples']} tokens; depth: {DEPTH['generations']} of {DEPTH['offspring']}; "
        f"quality on the first {QUICK} windows"
    )


def _search_levels(bench: Bench, model: str) -> dict[str, Any]:
    source = open_source(model)
    calibration = _calibration(bench, source, WINDOWS["levels"])
    made, live = Database(source, GRID), LiveModel(source)
    fitness = DenseKL(live.module, calibration.inputs)
    valid = _windows(source, bench.data / "text/valid.txt")[:QUICK]
    dense = _losses(live, valid)
    table = made.options("codes", GRID)
    weights = sum(made.weights.values())
    space = LevelSpace(
        live, table, lambda name, choice: made.record(name, choice[0]), bits=BITS, weights=weights,
        exact=True,
    )  # fmt: skip
    outputs = _output_errors(source, made, _calibration(bench, source, WINDOWS["moments"]))
    found, spent, states = _logged(space, fitness, LEVELS)
    few = {**LEVELS, "generations": 2, "offspring": 6}
    chosen = {
        "uniform": (1,) * space.n,
        "dp weights": _plain(integer_knapsack(table.cost, table.error, BITS * weights)),
        "dp outputs": _plain(integer_knapsack(table.cost, outputs, BITS * weights)),
        "evopress": found,
    }
    losses: dict[str, Losses] = {}
    result: dict[str, Any] = {}
    for label, state in chosen.items():
        space.apply(state)
        losses[label] = _losses(live, valid)
        result[label] = {
            "excess": losses[label].mean - dense.mean,
            "kl": fitness(state, fitness.samples, 0),
            "bits": space.spent(state) / weights,
            "layers": np.bincount(state, minlength=3).tolist(),
        }
    return {
        **result,
        "against": {rival: _difference(losses["evopress"], losses[rival]) for rival in chosen},
        "spent": sorted({cost / weights for cost in spent}),
        "states": states,
        "repeats": _repeats(space, fitness, few),
        "repeated": few["generations"],
    }


def _logged(
    space: LevelSpace, fitness: DenseKL, settings: dict[str, Any]
) -> tuple[State, set[float], int]:
    """What a search finds, what its states cost, and how many measurements it took."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "search.jsonl"
        found = evolve(space, fitness, log=log, **settings)
        lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    return found.state, {line["spent"] for line in lines}, len(lines)


def _repeats(space: LevelSpace, fitness: DenseKL, settings: dict[str, Any]) -> bool:
    """Whether a search, one that goes on from half of a log, and another of the same seed agree."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "search.jsonl"
        first = evolve(space, fitness, log=log, **settings)
        data = log.read_bytes()
        log.write_bytes(data[: len(data) // 2])
        resumed = evolve(space, fitness, log=log, **settings)
        same_log = log.read_bytes() == data
    return first == resumed == evolve(space, fitness, **settings) and same_log


class _Outputs:
    """A step that measures what every strength loses of each layer's output; leaves layers dense."""

    wants = (SecondMoment(),)
    changes_inputs = False

    def __init__(self, made: Database) -> None:
        self.made = made
        self.errors: dict[str, list[float]] = {}

    def revise_block(self, view: BlockView) -> None:
        for layer in view.live.layers:
            weight = view.live.weight(layer)
            values = [self.made.record(layer.name, n).weight for n in range(len(GRID))]
            self.errors[layer.name] = [
                output_error(weight, value, view.stats[layer.name]) for value in values
            ]


def _output_errors(source: ModelSource, made: Database, calibration: Calibration) -> np.ndarray:
    """(layers, strengths) ||(W - W')X||^2 / ||W X||^2, whose sum the paper's rival minimises."""
    step = _Outputs(made)
    run_layers(source, NoSink(), [step], calibration=calibration)
    return np.array([step.errors[name] for name in made.entries])


def _difference(ours: Losses, theirs: Losses) -> dict[str, Any]:
    """Mean loss of ours minus theirs, nats, and its interval over windows."""
    values = ours.nll - theirs.nll
    mean = (values.sum() / ours.predictions.sum()).item()
    return {"difference": mean, "ci95": bootstrap(values, ours.predictions)}


def _losses(live: LiveModel, valid: Tensor) -> Losses:
    return measure_losses(live.module, language_batches(valid, 1))


def _windows(source: ModelSource, path: Path) -> Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    context = source.skeleton.config.max_position_embeddings
    return windows(read_text(path)[:BEGINNING], tokenizer, context)


def _calibration(bench: Bench, source: ModelSource, count: int) -> Calibration:
    rows = _windows(source, bench.data / "text/train.txt")[:count]
    if len(rows) < count:
        raise SystemExit(f"text/train.txt begins with {len(rows)} windows, {count} are needed")
    inputs = tuple({"input_ids": row[None]} for row in rows)
    return Calibration(inputs, None, range(count), range(count, count))


def _plain(chosen: np.ndarray) -> State:
    return tuple(chosen.tolist())
