"""MLoRQ: integers or factors of integers, layer by layer, beside one width everywhere at the same resident bytes.

Calibrated on training data, measured on held-out data; `A < B` holds where the 95 % interval of the paired
difference of losses is below 0. Quick runs take fewer steps and measure fewer forms than the defaults.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.paired import COMPARED, compare, measured, training_data
from laconic.allocate.knapsack import solve
from laconic.allocate.options import Options
from laconic.calibrate.calibration import read_calibration
from laconic.calibrate.inputs import Subject
from laconic.method import Method
from laconic.models.open import open_source
from laconic.quantize._mlorq_search import Search
from laconic.quantize.adaround import AdaRound
from laconic.quantize.gptq import GPTQ
from laconic.quantize.mlorq import MLoRQ

KINDS = ("llama", "vit")  # model types that it is proved on
EFFORT: dict[str, dict[str, int]] = {
    "quick": {"steps": 150, "points": 3, "predictions": 512},
    "full": {},
}
LOW = 2.5  # resident bits at which factors matter most
SEQUENCES = 64  # that the search of the second part is shown
HELD_OUT = 20  # interpolated forms that are measured
MEDIAN = 0.2  # how far off half of them may be
FACTORS = "4 6 8"  # the paper's widths of factors
WIDTHS = (2, 3, 4, 6, 8)


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    sums: list[list[Any]] = []
    for name, model in bench.models().items():
        config = Path(model) / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("model_type") in KINDS:
            rows += _models(bench, name, model)
            sums += _sums(bench, name, model)
    bench.table("widths and ranks layer by layer", COMPARED, rows)
    bench.table(
        "sums of scores, relative squared errors of the answers",
        ["model", "resident bits", "knapsack", "greedy", "no factors", "one width"], sums,
    )  # fmt: skip


def _models(bench: Bench, name: str, model: str) -> list[list[Any]]:
    """Whole models, at what three bits everywhere take in memory and at `LOW`."""
    effort = EFFORT[bench.slice]
    steps = {"steps": effort["steps"]} if effort else {}
    uniform = AdaRound(3, "row", False, "percentile", **steps)
    bits = int(measured(bench, name, model, uniform)["resident_bits"] * 1000) / 1000
    chains: dict[str, list[Method]] = {
        "int3": [uniform],
        "mlorq": [MLoRQ(bits, factors=FACTORS, **effort)],
        "mlorq, no factors": [MLoRQ(bits, **effort)],
        "int3, nearest": [AdaRound(3, "row", False, "percentile", 0)],
        "gptq3": [GPTQ(3, "row", symmetric=False)],
        f"mlorq {LOW}": [MLoRQ(LOW, factors=FACTORS, **effort)],
        f"mlorq {LOW}, no factors": [MLoRQ(LOW, **effort)],
        "mlorq, rows alone": [MLoRQ(bits, factors=FACTORS, inputs="none", **effort)],
    }
    claims = (
        ("mlorq", "int3"), ("mlorq, no factors", "int3"), ("int3", "int3, nearest"), ("mlorq", "mlorq, no factors"),
        ("mlorq", "mlorq, rows alone"), (f"mlorq {LOW}", f"mlorq {LOW}, no factors"),
    )  # fmt: skip
    rows = compare(bench, name, model, chains, claims)
    most = max(
        row[3] - bits
        for row in rows
        if row[1] in ("mlorq", "mlorq, no factors", "mlorq, rows alone")
    )
    bench.check(f"{name}: takes no more memory than three bits everywhere", most <= 0, above=most)
    return rows


def _sums(bench: Bench, name: str, model: str) -> list[list[Any]]:
    """The scores that layers are chosen by."""

    def run() -> dict[str, Any]:
        search = _search(bench, model)
        return {
            "sums": [_sum(search, bits) for bits in (LOW, 3.0, 3.5, 4.0, 5.0)],
            "interpolated": _interpolated(search),
        }

    found = bench.cached(f"sums of {name}", run)
    sums, off = found["sums"], found["interpolated"]
    for rival in ("greedy", "no factors", "one width"):
        known = [row for row in sums if row[rival] is not None]
        bench.check(
            f"{name}: sum of scores of the knapsack <= {rival}",
            all(row["knapsack"] <= row[rival] * (1 + 1e-9) for row in known) and bool(known),
            budgets=len(known), least=min(row[rival] / row["knapsack"] for row in known),
        )  # fmt: skip
    bench.check(f"{name}: knapsacks are exact", all(row["slack"] == 0 for row in sums), slack=max(row["slack"] for row in sums))  # fmt: skip
    median = float(np.median(off))
    bench.check(
        f"{name}: half of {len(off)} interpolated scores within {MEDIAN:.0%} of measured ones",
        median < MEDIAN and len(off) == HELD_OUT, median=median, most=max(off),
    )  # fmt: skip
    keys = ("bits", "knapsack", "greedy", "no factors", "one width")
    return [[name, *("" if row[key] is None else row[key] for key in keys)] for row in sums]


def _search(bench: Bench, model: str) -> Search:
    source = open_source(model)
    subject = Subject(source.skeleton, source.folder)
    data = read_calibration(training_data(bench, model), subject, fitted=SEQUENCES, held_out=0)
    return MLoRQ(factors=FACTORS, **EFFORT[bench.slice]).search(source, data)


def _sum(search: Search, bits: float) -> dict[str, Any]:
    """Sums of scores at so many bits; of one width, at what the widest that fits takes."""
    budget = bits * search.weights / 8
    table, plain = search.options(), search.options(factors=False)
    best = solve(table.cost, table.error, budget)
    without = solve(plain.cost, plain.error, budget).error if plain.least <= budget else None
    uniform = [sum(made.plain[b].resident_bytes for made in search.layers.values()) for b in WIDTHS]
    fits = [i for i, paid in enumerate(uniform) if paid <= budget]
    alike = float(plain.error[:, fits[-1]].sum()) if fits else None
    greedy = _greedy(table, budget)
    return {
        "bits": bits, "knapsack": best.error, "slack": best.slack, "greedy": greedy,
        "no factors": without, "one width": alike,
    }  # fmt: skip


def _greedy(table: Options, budget: float) -> float:
    """Error after the best gain for each byte, again and again, from the smallest forms."""
    table = table.pruned()
    exists = np.isfinite(table.cost)
    chosen = np.zeros(len(table), np.int64)
    items = np.arange(len(table))
    paid = float(table.cost[items, chosen].sum())
    while True:
        more = table.cost - table.cost[items, chosen][:, None]
        gain = table.error[items, chosen][:, None] - np.where(exists, table.error, np.inf)
        may = exists & (more > 0) & (gain > 0) & (paid + more <= budget)
        if not may.any():
            return float(table.error[items, chosen].sum())
        rate = np.where(may, gain / np.where(may, more, 1.0), -np.inf)
        item, option = np.unravel_index(int(rate.argmax()), rate.shape)
        paid += float(more[item, option])
        chosen[item] = option


def _interpolated(search: Search) -> list[float]:
    """How far interpolated scores are from those in the model, of forms drawn at random."""
    rest = [
        (layer, number)
        for layer, made in search.layers.items()
        for number in range(len(made.choices))
        if number not in search.measured[layer]
    ]
    draw = np.random.default_rng(0).choice(len(rest), min(HELD_OUT, len(rest)), replace=False)
    found = []
    for layer, number in (rest[i] for i in draw):
        truth = search.whole({layer: search.layers[layer].choices[number]})
        found.append(abs(search.scores[layer][number] - truth) / truth)
    return found
