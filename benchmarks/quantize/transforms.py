"""Transforms before weights and inputs of 4 bits: WUSH, Hadamard, none; integers, MXFP4 and NVFP4.

Models are calibrated on the first 128 windows (images) of training data and measured on validation data.
`A < B` holds where the 95 % interval of the paired difference of their losses is below 0. Single layers see
inputs of the dense model, errors are measured on the windows after those that transforms were fitted to.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.layers import Layer, model_layers
from benchmarks.paired import COMPARED, compare, training_data
from laconic.method import Method
from laconic.quantize.activations import Activations
from laconic.quantize.floats import Floats
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.quantize.wush import WUSH
from laconic.tensors import Dense, IntQuantizer
from laconic.tensors.stored import Record

BLOCK, SMALL = 32, 16  # of integers and MXFP4; of NVFP4
INTEGERS = Activations(4, group=BLOCK)
FORMATS: Mapping[str, tuple[int, Sequence[Method]]] = {
    "int4 g32": (BLOCK, [RTN(4, BLOCK, range="minmax"), INTEGERS]),
    "int4 g32 gptq": (BLOCK, [GPTQ(4, BLOCK, range="minmax"), INTEGERS]),
    "mxfp4": (BLOCK, [Floats("mxfp4", range="minmax"), Activations(4, "mxfp")]),
    "nvfp4": (SMALL, [Floats("nvfp4", range="minmax"), Activations(4, "nvfp")]),
}
CHAINS: Mapping[str, Sequence[Method]] = {
    f"{name}, {label}": [*first, *chain]
    for name, (block, chain) in FORMATS.items()
    for label, first in (
        ("wush", [WUSH(block)]),
        ("hadamard", [Hadamard(block=block)]),
        ("none", []),
    )
}
CLAIMS = tuple(
    (f"{name}, {ours}", f"{name}, {theirs}")
    for name in FORMATS
    for ours, theirs in (("wush", "hadamard"), ("hadamard", "none"))
)
POSITIONS = 2048  # inputs drawn with the moment of the held-out ones


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    layers: list[list[Any]] = []
    rows: list[list[Any]] = []
    transformers = {n: m for n, m in bench.models().items() if not n.startswith("resnet")}
    for name, model in transformers.items():
        found = bench.cached(f"layers {name}", lambda m=model: _layers(bench, m))
        layers += _check_layers(bench, name, found)
    for name, model in transformers.items():
        rows += compare(bench, name, model, CHAINS, CLAIMS)
    bench.table(
        "W4A4 integers in groups of 32, single layers: error of the output, sums over layers; and what "
        "WUSH predicts of its error over Hadamard's",
        ["model", "layers", "none", "hadamard", "wush", "wush wins", "correlation"], layers,
    )  # fmt: skip
    bench.table("whole models", COMPARED, rows)


def _layers(bench: Bench, model: str) -> list[dict[str, float]]:
    """Of every layer the errors behind each transform, and the predicted ratio."""
    found = []
    for layer in model_layers(model, training_data(bench, model), bench.slice):
        if layer.matrix.shape[1] % BLOCK == 0:
            found.append(_errors(layer))
    return found


def _errors(layer: Layer) -> dict[str, float]:
    energies, directions = torch.linalg.eigh(
        layer.held_out
    )  # few sequences leave some without energy
    root = directions * energies.clamp(min=0).sqrt()
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(POSITIONS, len(root), generator=draw, dtype=torch.float64) @ root.mT).float()
    dense = Record(Dense(layer.matrix))
    wush = WUSH(BLOCK)
    transform = wush.transform(layer.matrix, layer.stats)
    gain = float(layer.stats.notes.pop().split()[2])
    folded = Record(Dense(transform.fold(layer.matrix)), transform)
    rotated = Hadamard(block=BLOCK).transform(layer.matrix.shape[1])
    return {
        "none": _error(layer.matrix, x, dense),
        "hadamard": _error(layer.matrix, x, Record(Dense(rotated.fold(layer.matrix)), rotated)),
        "wush": _error(layer.matrix, x, folded),
        "predicted": gain,
    }


def _error(weight: Tensor, x: Tensor, record: Record) -> float:
    """Of a product of which both sides are on grids of 4 bits."""
    grid = IntQuantizer(4, BLOCK)
    inputs = x if record.transform is None else record.transform(x)
    y = grid.project(inputs) @ grid.project(record.weight.dense(torch.float32)).mT
    whole = x @ weight.mT
    return float((y - whole).double().square().sum() / whole.double().square().sum())


def _check_layers(bench: Bench, name: str, found: list[dict[str, float]]) -> list[list[Any]]:
    total = {key: sum(row[key] for row in found) for key in ("none", "hadamard", "wush")}
    won = sum(row["wush"] < row["hadamard"] for row in found) / max(1, len(found))
    measured = np.array([row["wush"] / row["hadamard"] for row in found])
    predicted = np.array([row["predicted"] for row in found])
    correlation = float(np.corrcoef(measured, predicted)[0, 1]) if len(found) > 2 else 1.0
    bench.check(
        f"{name}: output errors of layers, wush < hadamard < none",
        total["wush"] < total["hadamard"] < total["none"], **total,
    )  # fmt: skip
    bench.check(f"{name}: wush < hadamard in 95 % of the layers", won >= 0.95, share=won)
    bench.check(
        f"{name}: predicted and measured ratios go together, correlation above 0.8",
        correlation > 0.8, correlation=correlation,
    )  # fmt: skip
    return [[name, len(found), *total.values(), won, correlation]]
