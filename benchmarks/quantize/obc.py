"""OBQ and ExactOBS on every layer, beside the sweeps that go through all rows in one order.

Layers see the inputs of the dense model; methods are fitted to the first windows (images) of training
data, errors measured on the next. ResNet-20's accuracy is measured on its test images.
"""

import time
from itertools import pairwise
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.layers import model_layers, output_error
from benchmarks.paired import difference, measured, quality, spelt, training_data
from laconic.method import LayerMethod
from laconic.prune.exactobs import ExactOBS
from laconic.prune.magnitude import Magnitude
from laconic.prune.sparsegpt import SparseGPT
from laconic.quantize.gptq import GPTQ
from laconic.quantize.obc import OBQ
from laconic.quantize.rtn import RTN

ROW = "row"
QUANTIZED: dict[str, dict[str, LayerMethod]] = {
    f"int{bits} row": {
        "obq": OBQ(bits, ROW),
        "obq greedy": OBQ(bits, ROW, order="greedy"),
        "gptq": GPTQ(bits, ROW),
        "rtn": RTN(bits, ROW, range="mse"),
    }
    for bits in (2, 3, 4)
}
PRUNED: dict[str, dict[str, LayerMethod]] = {
    "60 % zeros": {
        "exactobs": ExactOBS(0.6), "exactobs row": ExactOBS(0.6, ROW), "sparsegpt": SparseGPT(0.6),
        "magnitude": Magnitude(0.6),
    },
    "2:4": {"exactobs": ExactOBS(pattern="2:4"), "sparsegpt": SparseGPT(pattern="2:4"), "magnitude": Magnitude(pattern="2:4")},
}  # fmt: skip
WHOLE: dict[str, LayerMethod] = {
    "obq3": OBQ(3), "obq3 greedy": OBQ(3, order="greedy"), "gptq3": GPTQ(3),
    "obq2": OBQ(2), "obq2 greedy": OBQ(2, order="greedy"), "gptq2": GPTQ(2),
    "exactobs 60 %": ExactOBS(0.6), "sparsegpt 60 %": SparseGPT(0.6),
    "exactobs 2:4": ExactOBS(pattern="2:4"), "sparsegpt 2:4": SparseGPT(pattern="2:4"), "magnitude 2:4": Magnitude(pattern="2:4"),
}  # fmt: skip
CLAIMS = (
    ("obq3", "gptq3"), ("obq2", "gptq2"), ("exactobs 60 %", "sparsegpt 60 %"),
    ("exactobs 2:4", "sparsegpt 2:4"), ("exactobs 2:4", "magnitude 2:4"),
)  # fmt: skip
SHOWN = ("obq greedy", "exactobs row")  # beside the others, without a claim
BLOCKS = 3  # of each model: the first, the last and one between


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    for name, model in bench.models().items():
        found = bench.cached(f"layers {name}", lambda m=model: _layers(bench, m))
        for setting, orders in found.items():
            rows += _check_layers(bench, name, setting, orders)
    bench.table(
        "output error of layers of a kind together, on inputs not fitted to; seconds of all",
        ["model", "layers", "setting", "by", "error", "s"], rows,
    )  # fmt: skip
    _whole_models(bench)


def _layers(bench: Bench, model: str) -> dict[str, Any]:
    """By setting, kind of layer and method, the sum of errors and of seconds, and how many there are."""
    found: dict[str, Any] = {}
    for layer in model_layers(model, training_data(bench, model), bench.slice, BLOCKS):
        for setting, methods in (QUANTIZED | PRUNED).items():
            kinds = found.setdefault(setting, {}).setdefault(layer.role, {})
            for label, method in methods.items():
                started = time.perf_counter()
                value = method.compress_weight(layer.weight, layer.stats)
                seconds = time.perf_counter() - started
                matrix = value.dense().double().reshape(layer.matrix.shape)
                error = output_error(layer.matrix, matrix, layer.held_out)
                before = kinds.get(label, (0.0, 0.0, 0))
                kinds[label] = (before[0] + error, before[1] + seconds, before[2] + 1)
    return found


def _check_layers(bench: Bench, name: str, setting: str, kinds: dict[str, Any]) -> list[list[Any]]:
    """Each kind of layers: exact < swept < the simplest."""
    rows: list[list[Any]] = []
    for kind, runs in kinds.items():
        for label, (error, seconds, count) in runs.items():
            rows.append([name, f"{count} {kind}", setting, label, error / count, seconds])
        errors = {label: run[0] / run[2] for label, run in runs.items()}
        chain = [label for label in runs if label not in SHOWN]
        bench.check(
            f"{name}, {kind}, {setting}: {' < '.join(chain)}",
            all(errors[a] < errors[b] for a, b in pairwise(chain)), **errors,
        )  # fmt: skip
    return rows


def _whole_models(bench: Bench) -> None:
    """Whole models, each layer fitted under what comes through the compressed ones before it."""
    rows: list[list[Any]] = []
    for name, model in bench.models().items():
        whole = measured(bench, name, model, ())
        runs = {label: measured(bench, name, model, method) for label, method in WHOLE.items()}
        for label, run in runs.items():
            excess = difference(run, whole)
            rows.append([
                name, label, run["bits"], run["resident_bits"], quality(run), excess["difference"],
                spelt(excess), run["error"], run["seconds"],
            ])  # fmt: skip
        for ours, theirs in CLAIMS:
            found = difference(runs[ours], runs[theirs])
            bench.check(
                f"{name}: {ours} < {theirs}", found["verdict"] == "better",
                ours=quality(runs[ours]), theirs=quality(runs[theirs]),
                difference=found["difference"], ci=spelt(found),
            )  # fmt: skip
        slowest = max(
            runs[label]["seconds"] for label in WHOLE if label.startswith(("obq", "exact"))
        )
        bench.check(f"{name}: each in less than 5 minutes", slowest < 300, slowest=slowest)
    columns = [
        "model", "method", "stored bits", "resident bits", "quality", "excess nats", "95 %",
        "layer error", "s",
    ]  # fmt: skip
    bench.table(
        "whole models; quality is perplexity, or accuracy of the classifiers", columns, rows
    )
