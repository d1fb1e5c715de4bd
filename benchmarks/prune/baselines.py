"""What each criterion of pruning loses: SparseGPT, Wanda, magnitude and chance at equal sparsity.

All are the same tensors with the same number of zeros, calibrated on 128 windows of training data and
measured on validation data.
"""

import math
from itertools import pairwise
from typing import Any

from benchmarks.bench import Bench
from benchmarks.paired import difference, measured, quality, spelt
from laconic.method import LayerMethod
from laconic.prune.magnitude import Magnitude
from laconic.prune.random import Random
from laconic.prune.sparsegpt import SparseGPT
from laconic.prune.wanda import Wanda

SETTINGS: dict[str, dict[str, LayerMethod]] = {
    "50 %": {
        "sparsegpt": SparseGPT(0.5),
        "wanda": Wanda(0.5),
        "magnitude": Magnitude(0.5),
        "random": Random(0.5),
    },
    "70 %": {
        "sparsegpt": SparseGPT(0.7),
        "wanda": Wanda(0.7),
        "magnitude": Magnitude(0.7),
        "random": Random(0.7),
    },
    "2:4": {
        "sparsegpt": SparseGPT(pattern="2:4"),
        "wanda": Wanda(pattern="2:4"),
        "magnitude": Magnitude(pattern="2:4"),
        "random": Random(pattern="2:4"),
    },
}
SPARSITY = {"50 %": 0.5, "70 %": 0.7, "2:4": 0.5}
BY_ROW = Magnitude(pattern="row")  # beside the layer's, in the table alone
NATURAL = 1e-4  # share of weights that may be zero of themselves


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    language = bench.language_models()
    for name, model in bench.models().items():
        whole = measured(bench, name, model, ())
        excess: dict[str, dict[str, tuple[float, float]]] = {}  # stored bits and nats
        rows.append([name, "none", "dense", "", "", 1.0, quality(whole), 0.0, *[""] * 6])
        for setting, methods in SETTINGS.items():
            extra = {"magnitude, row": BY_ROW} if setting == "50 %" else {}
            runs = {
                label: measured(bench, name, model, method)
                for label, method in (methods | extra).items()
            }
            rows += _rows(name, setting, runs, whole)
            excess[setting] = {
                label: (run["bits"], difference(run, whole)["difference"])
                for label, run in runs.items()
            }
            _check_zeros(bench, name, setting, runs)
            _check_bytes(bench, name, setting, runs)
            if name in language:
                _check_order(bench, name, setting, runs, whole)
            elif setting == "70 %":
                _check_chance(bench, name, runs)
        if name in language:
            _check_equal_bytes(bench, name, excess["50 %"], excess["70 %"])
    columns = [
        "model", "zeros", "by", "stored bits", "resident bits", "kept", "quality", "excess nats",
        "95 %", "less the next", "95 %", "verdict", "layer error", "s",
    ]  # fmt: skip
    bench.table(
        "pruning; excess loss against the dense model; 'less the next' is the paired difference to "
        "the method below; quality is perplexity, or accuracy of the classifiers",
        columns, rows,
    )  # fmt: skip


def _rows(name: str, setting: str, runs: dict[str, Any], whole: dict[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    labels = list(runs)
    for label, after in pairwise([*labels, None]):
        run = runs[label]
        against = difference(run, whole)
        beside: list[Any] = ["", "", ""]
        if after in SETTINGS[setting]:
            gap = difference(run, runs[after])
            beside = [gap["difference"], spelt(gap), gap["verdict"]]
        rows.append([
            name, setting, label, run["bits"], run["resident_bits"], run["kept"], quality(run),
            against["difference"], spelt(against), *beside, run["error"], run["seconds"],
        ])  # fmt: skip
    return rows


def _check_order(
    bench: Bench, name: str, setting: str, runs: dict[str, Any], whole: dict[str, Any]
) -> None:
    """Each criterion beside the next weaker one."""
    labels = list(SETTINGS[setting])
    for ours, theirs in pairwise(labels):
        gap = difference(runs[ours], runs[theirs])
        bench.check(
            f"{name}, {setting} zeros: {ours} loses less than {theirs}",
            gap["verdict"] == "better",
            ours=difference(runs[ours], whole)["difference"],
            theirs=difference(runs[theirs], whole)["difference"],
            low=gap["low"], high=gap["high"], verdict=gap["verdict"],
        )  # fmt: skip


def _check_equal_bytes(
    bench: Bench, name: str, half: dict[str, tuple[float, float]],
    most: dict[str, tuple[float, float]],
) -> None:  # fmt: skip
    """The files of a stronger criterion are a little larger: what would the rival lose in those?"""
    for ours, theirs in pairwise(("sparsegpt", "wanda", "magnitude")):
        bits, loss = most[ours]
        (few, worse), (many, better) = most[theirs], half[theirs]
        rival = worse + (better - worse) * (bits - few) / (many - few)
        bench.check(
            f"{name}, as many bytes as {ours} with 70 % zeros: it loses less than {theirs}",
            loss < rival, ours=loss, theirs=rival, bits=bits, theirs_at_70=few,
        )  # fmt: skip


def _check_chance(bench: Bench, name: str, runs: dict[str, Any]) -> None:
    """Accuracy of classifiers: a criterion that is worth anything beats chance."""
    accuracy = {label: quality(runs[label]) for label in SETTINGS["70 %"]}
    chance = accuracy.pop("random")
    bench.check(
        f"{name}, 70 % zeros: sparsegpt, wanda and magnitude are right more often than random",
        min(accuracy.values()) > chance, **accuracy, random=chance,
    )  # fmt: skip


def _check_zeros(bench: Bench, name: str, setting: str, runs: dict[str, Any]) -> None:
    """Every layer has its share, up to the rounding of a row, and of short last runs."""
    off = 0.0
    for run in runs.values():
        for zeros, shape in run["zeros"]:
            out, size = shape[0], math.prod(shape)
            columns = size // out
            share = SPARSITY[setting]
            if setting == "2:4":
                share = (columns // 4 * 2 + max(0, columns % 4 - 2)) / columns
            off = max(off, (abs(zeros - share * size) - 0.5 * out) / size)
    every = all(len(run["zeros"]) == run["layers"] for run in runs.values())
    bench.check(
        f"{name}, {setting} zeros: so many in every layer", every and off <= NATURAL, off=off
    )


def _check_bytes(bench: Bench, name: str, setting: str, runs: dict[str, Any]) -> None:
    """Files differ by less than the entropy of where zeros are."""
    share = SPARSITY[setting]
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    entropy = math.log2(6) / 4 if setting == "2:4" else entropy
    bits = {label: run["bits"] for label, run in runs.items()}
    bench.check(
        f"{name}, {setting} zeros: stored bits a weight differ by less than the mask's entropy",
        max(bits.values()) - min(bits.values()) < entropy, entropy=entropy, **bits,
    )  # fmt: skip
