"""Ranges by golden section: of weights beside grids of points, percentiles and extremes; of activations beside extremes.

Losses of single layers are squared errors of weights in the space of the weights. Classifiers are measured on their
test images; ranges of activations come from the calibration images or windows. `A < B` holds where the 95 %
interval of the paired difference of losses is below 0.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import IMAGE_DATA, Bench
from benchmarks.layers import model_layers
from benchmarks.paired import COMPARED, compare, measured, quality
from laconic.calibrate.layer_stats import LayerStats
from laconic.measure.speed import seconds
from laconic.method import LayerMethod, Method, Needs, Paper
from laconic.quantize.activations import Activations
from laconic.quantize.gptq import GPTQ
from laconic.quantize.requant import REQuant
from laconic.quantize.rtn import RTN
from laconic.tensors import CompressedTensor, IntQuantizer

POINTS = 400  # of the grid that golden section is held against
GRID_OF_A_TOOL = 100  # of that whose time is compared
SLACK = {4: 1.002, 6: 1.002, 8: 1.02}
DROPS = {6: 0.005, 8: 0.001}  # accuracy that may be lost
ROUNDED_WEIGHTS = [GPTQ(8, "row")]


@dataclass(frozen=True)
class Percentile(LayerMethod):
    """Symmetric grids up to a percentile of the magnitudes: the rival."""

    bits: int = 4
    share: float = 0.999

    paper = Paper(None, "Integer quantization for deep learning inference", 2020, "2004.09602")
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "weight-only", "uniform")

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        quantizer = IntQuantizer(self.bits, "tensor")
        high = torch.quantile(weight.abs().flatten().float(), self.share).reshape(1, 1)
        grid = quantizer.grid(-high, high, max(1, weight[0].numel()))
        return quantizer.pack(quantizer.encode(weight, grid), grid, weight)


#: One range for a tensor, 4 bits; then what more bits lose.
WEIGHTS: Mapping[str, Sequence[Method]] = {
    "extremes": [RTN(4, "tensor", range="minmax")], "percentile 99.9": [Percentile()],
    "requant, even": [REQuant(4, "tensor", 1.0)], "requant": [REQuant(4, "tensor")],
    "requant row": [REQuant(4)], "rtn row": [RTN(4, "row")],
    "requant 6": [REQuant(6, "tensor")], "requant 8": [REQuant(8, "tensor")],
}  # fmt: skip
WEIGHT_CLAIMS = (
    ("requant", "requant, even"), ("requant, even", "percentile 99.9"),
    ("percentile 99.9", "extremes"), ("requant row", "rtn row"),
)  # fmt: skip


def _activations(bits: int, ends: str, symmetric: bool) -> list[Method]:
    static = Activations(bits, range="static", ends=ends, symmetric=symmetric)  # type: ignore[arg-type]
    return [*ROUNDED_WEIGHTS, static]


#: Weights at 8 bits, inputs on one static range for each layer.
INPUTS: Mapping[str, Sequence[Method]] = {
    f"a{bits} {'even' if symmetric else 'zero point'} {ends}": _activations(bits, ends, symmetric)
    for bits in (4, 6, 8) for symmetric in (False, True) for ends in ("minmax", "mse")
}  # fmt: skip
INPUT_CLAIMS = tuple(
    (label, label.replace("mse", "minmax")) for label in INPUTS
    if label.endswith("mse") and not label.startswith("a8")
)  # fmt: skip


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    layers: list[list[Any]] = []
    for name, model in bench.models().items():
        if bench.data_for(model) == bench.data / IMAGE_DATA:
            layers += _check_layers(bench, name, model)
            rows += compare(bench, name, model, WEIGHTS, WEIGHT_CLAIMS)
            dense = quality(measured(bench, name, model, ()))
            for bits, drop in DROPS.items():
                ours = quality(measured(bench, name, model, WEIGHTS[f"requant {bits}"]))
                bench.check(
                    f"{name}: {bits} bits lose less than {drop:.1%} of images", dense - ours < drop,
                    dense=dense, ours=ours,
                )  # fmt: skip
        rows += compare(bench, name, model, INPUTS, INPUT_CLAIMS)
    bench.table(
        f"squared error of weights, golden section over {POINTS} points and over extremes",
        ["model", "bits", "over points, worst", "over extremes, worst", "mean", "layers"], layers,
    )  # fmt: skip
    bench.table("models", COMPARED, rows)


def _check_layers(bench: Bench, name: str, model: str) -> list[list[Any]]:
    """Rows of the table of single layers."""
    weights = [la.weight for la in model_layers(model, bench.data_for(model), "quick")]
    rows = []
    for bits, slack in SLACK.items():
        losses = torch.tensor([_losses(weight, bits) for weight in weights])  # (layers, 3)
        points, extremes = losses[:, 0] / losses[:, 1], losses[:, 0] / losses[:, 2]
        bench.check(
            f"{name}: {bits} bits, every layer within {slack} of {POINTS} points",
            points.max().item() <= slack, worst=points.max().item(), layers=len(points),
        )  # fmt: skip
        bench.check(
            f"{name}: {bits} bits, no layer above its extremes",
            extremes.max().item() <= 1 + 1e-6, worst=extremes.max().item(),
        )  # fmt: skip
        rows.append(
            [
                name,
                bits,
                points.max().item(),
                extremes.max().item(),
                extremes.mean().item(),
                len(points),
            ]
        )
    torch.set_num_threads(1)
    ours, theirs = seconds(
        lambda: [REQuant(4, "tensor", 1.0).compress_weight(w) for w in weights],
        lambda: [_of_grid(w, 4, GRID_OF_A_TOOL) for w in weights],
    )
    ratio = statistics.median(theirs) / statistics.median(ours)
    bench.check(
        f"{name}: less than half the time of {GRID_OF_A_TOOL} points",
        ratio > 2,
        ratio=ratio,
    )
    return rows


def _losses(weight: Tensor, bits: int) -> list[float]:
    """Squared errors of golden section, of the best of many points, and between the extremes."""
    values = (
        REQuant(bits, "tensor", 1.0).compress_weight(weight).dense(),
        _of_grid(weight, bits, POINTS),
        RTN(bits, "tensor", range="minmax").compress_weight(weight).dense(),
    )
    return [float((value.double() - weight).square().sum()) for value in values]


def _of_grid(weight: Tensor, bits: int, points: int) -> Tensor:
    """`weight` on the best of evenly spaced ranges."""
    quantizer, top = IntQuantizer(bits, "tensor"), weight.abs().amax().reshape(1, 1)
    columns = max(1, weight[0].numel())
    found = [
        quantizer.grid(-top * share, top * share, columns)
        for share in torch.linspace(0.05, 1, points).tolist()
    ]
    values = (quantizer.decode(quantizer.encode(weight, grid), grid) for grid in found)
    return min(values, key=lambda value: float((value - weight).square().sum()))
