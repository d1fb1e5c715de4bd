"""The shared mathematics on real layers: sweeps against rounding, quick forms against exact ones.

Second moments are of real inputs of the dense model: factors come from the windows that methods are
fitted to, errors from the held-out ones after them.
"""

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.layers import Layer, model_layers, output_error
from laconic.measure.speed import seconds
from laconic.models.open import open_source
from laconic.numerics.cholesky import inverse, inverse_upper
from laconic.numerics.kmeans import kmeans, nearest
from laconic.numerics.kmeans_1d import kmeans_1d_exact
from laconic.numerics.kmeans_init import density_init
from laconic.numerics.obs import UniformGrid, activation_order, block_sweep, grid_sweep
from laconic.numerics.obs_exact import exact_quantize
from laconic.numerics.svd import randomized_svd, truncated_svd
from laconic.tensors import IntQuantizer

BITS = (2, 3, 4)
RANGES = ("minmax", "mse")
EXACT_WIDTH = 256  # columns: wider layers are left out of the comparison with exact sweeps
EXACT_ROWS = {"quick": 32, "full": 128}  # of each layer; rows do not depend on each other
VECTOR_ROWS = {"quick": 64, "full": 256}
DIM, CENTROIDS = 4, 256
ROUNDS = {"quick": 5, "full": 9}


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    rounding, exact, quick, speed = [], [], [], []
    for name, model in bench.models().items():
        run = bench.cached(
            f"errors {name}", lambda m=model: _errors(m, bench.data_for(m), bench.slice)
        )
        rounding += _check_rounding(bench, name, run)
        exact += _check_exact(bench, name, run)
        quick.append(_check_quick_forms(bench, name, run))
        speed.append([name, *_check_speed(bench, name, model)])
    errors = ["nearest", "sweep", "sweep by activation"]
    bench.table(
        "squared output error / squared output, mean over layers",
        ["model", "grid", *errors, "layers"],
        rounding,
    )
    bench.table(
        f"the same on layers of {EXACT_WIDTH} columns or fewer, {EXACT_ROWS[bench.slice]} rows each",
        ["model", "grid", *errors, "exact", "layers", "left out"],
        exact,
    )
    bench.table(
        "quick forms, error / error of the exact form",
        [
            "model",
            "diagonal step, 4 columns",
            "k-means on a line",
            "k-means from density",
            "randomised SVD, worst layer",
        ],
        quick,
    )
    bench.table("seconds, one thread", ["model", "shape", "kernel", "torch", "ratio"], speed)


def _check_rounding(bench: Bench, name: str, run: dict[str, Any]) -> list[list[Any]]:
    rows = []
    if run["unseen"]:
        bench.note(f"{name}: {run['unseen']} layers that data does not reach left out")
    for grid in _grids():
        layers = [layer["all"][grid] for layer in run["layers"]]
        won = sum(layer["sweep"] < layer["nearest"] for layer in layers)
        bench.check(
            f"{name}, {grid}: the sweep loses less than rounding to nearest on every layer",
            won == len(layers),
            won=won,
            layers=len(layers),
        )
        rows.append([name, grid, *_means(layers, "nearest", "sweep", "ordered"), len(layers)])
    return rows


def _check_exact(bench: Bench, name: str, run: dict[str, Any]) -> list[list[Any]]:
    narrow = [layer["narrow"] for layer in run["layers"] if layer["narrow"]]
    left_out = len(run["layers"]) - len(narrow)
    bench.note(f"{name}: {left_out} layers of more than {EXACT_WIDTH} columns left out of exact")
    rows = []
    for grid in _grids() if narrow else ():
        means = _means([layer[grid] for layer in narrow], "nearest", "sweep", "ordered", "exact")
        rows.append([name, grid, *means, len(narrow), left_out])
        if grid.endswith("mse"):
            bench.check(
                f"{name}, {grid}: exact sweeps lose less than column sweeps",
                means[3] < means[1],
                exact=means[3],
                sweep=means[1],
            )
    return rows


def _check_quick_forms(bench: Bench, name: str, run: dict[str, Any]) -> list[Any]:
    layers = run["layers"]
    blocks = [sum(layer["blocks"][kind] for layer in layers) for kind in ("exact", "diagonal")]
    bench.check(
        f"{name}: the exact step of {DIM} columns loses no more than the diagonal one",
        blocks[0] <= blocks[1],
        exact=blocks[0],
        diagonal=blocks[1],
    )
    kinds = ("ours", "density", "optimum")
    lines = [sum(layer["lines"][kind] for layer in layers) for kind in kinds]
    bench.check(
        f"{name}: k-means on a line within 2 % of the optimum",
        lines[0] <= 1.02 * lines[2],
        ratio=lines[0] / lines[2],
    )
    worst = max(layer["svd"] for layer in layers)
    bench.check(
        f"{name}: randomised SVD within 1 % of the exact error on every layer", worst <= 1.01,
        worst=worst,
    )  # fmt: skip
    return [name, blocks[1] / blocks[0], lines[0] / lines[2], lines[1] / lines[2], worst]


def _check_speed(bench: Bench, name: str, model: str) -> list[Any]:
    found = model_layers(model, bench.data_for(model), bench.slice)
    layer = max(found, key=lambda layer: layer.matrix.numel())
    weight, upper = layer.matrix, inverse_upper(layer.moment).factor
    grid = _grid(weight, 3, "minmax")
    slow, fast = seconds(
        lambda: block_sweep(weight, upper, _rounder(grid)),
        lambda: grid_sweep(weight, upper, grid),
        ROUNDS[bench.slice],
    )
    times = [statistics.median(fast), statistics.median(slow)]
    bench.check(
        f"{name}: the kernel is 3 times as fast as the loop over columns in torch, or more",
        times[1] >= 3 * times[0],
        ratio=times[1] / times[0],
    )
    return ["x".join(map(str, weight.shape)), *times, times[1] / times[0]]


def _errors(model: str, data: Path, slice: str) -> dict[str, Any]:
    """What each way of rounding loses on each layer, and the quick forms beside the exact ones."""
    layers = [_layer_errors(layer, slice) for layer in model_layers(model, data, slice)]
    total = sum(len(block.layers) for block in open_source(model).blocks)
    return {"layers": layers, "unseen": total - len(layers)}


def _layer_errors(layer: Layer, slice: str) -> dict[str, Any]:
    narrow = layer.matrix.shape[1] <= EXACT_WIDTH
    few = layer._replace(weight=layer.matrix[: EXACT_ROWS[slice]])
    return {
        "name": layer.name,
        "all": _rounded(layer, exact=False),
        "narrow": _rounded(few, exact=True) if narrow else None,
        "blocks": _blocks(layer._replace(weight=layer.matrix[: VECTOR_ROWS[slice]])),
        "lines": _lines(layer),
        "svd": _svd_ratio(layer.matrix),
    }


def _rounded(layer: Layer, exact: bool) -> dict[str, Any]:
    """Relative output errors by grid and way of rounding."""
    weight, moment = layer.matrix, layer.moment
    order = activation_order(moment)
    upper, by_order = (inverse_upper(m).factor for m in (moment, moment[order][:, order]))
    found = {}
    for bits in BITS:
        for kind in RANGES:
            grid = _grid(weight, bits, kind)
            values = {
                "nearest": grid.project(weight)[1],
                "sweep": grid_sweep(weight, upper, grid).values,
                "ordered": grid_sweep(weight[:, order], by_order, grid).values[:, order.argsort()],
            }
            if exact:
                values["exact"] = exact_quantize(weight, inverse(moment), grid).values
            found[f"int{bits} row {kind}"] = {
                key: output_error(weight, value, layer.held_out) for key, value in values.items()
            }
    return found


def _blocks(layer: Layer) -> dict[str, float]:
    """Relative output errors of vectors of 4 columns, with the exact and with the diagonal step."""
    columns = layer.matrix.shape[1] // DIM * DIM
    weight, held_out = layer.matrix[:, :columns], layer.held_out[:columns, :columns]
    upper = inverse_upper(layer.moment[:columns, :columns]).factor
    points = weight.reshape(1, -1, DIM)
    codebook = kmeans(points, min(CENTROIDS, points.shape[1]), iterations=10).centroids
    found = {}
    for exact in (True, False):

        def quantize(w: Tensor, first: int, exact: bool = exact) -> Tensor:
            block = upper[first : first + DIM, first : first + DIM].float()
            white = torch.linalg.inv(block if exact else torch.diag(block.diagonal()))
            index, _ = nearest((w @ white).unsqueeze(0), codebook @ white)
            return codebook[0, index[0]]

        values = block_sweep(weight, upper, quantize, dim=DIM, exact=exact).values
        found["exact" if exact else "diagonal"] = output_error(weight, values, held_out)
    return found


def _lines(layer: Layer) -> dict[str, float]:
    """Distortions of 4 centroids for every 256 weights of a row, weighted as GPTVQ does."""
    weight = layer.matrix
    group = min(256, weight.shape[1])
    columns = weight.shape[1] // group * group
    saliency = inverse_upper(layer.moment).factor.diagonal()[:columns] ** -2
    points = weight[:, :columns].reshape(-1, group, 1)
    weights = (saliency / saliency.mean()).float().expand(len(weight), -1).reshape(-1, group)
    start = density_init(points, 4, weights=weights.unsqueeze(2))
    centroids, assignment = kmeans_1d_exact(points.squeeze(2), 4, weights=weights)
    off = points.squeeze(2).double() - centroids.gather(1, assignment)
    scale = (weights * points.squeeze(2) ** 2).double().sum()
    return {
        "ours": float(kmeans(points, 4, weights=weights).distortion.sum() / scale),
        "density": float(kmeans(points, 4, weights=weights, init=start).distortion.sum() / scale),
        "optimum": float((weights * off**2).sum() / scale),
    }


def _svd_ratio(weight: Tensor) -> float:
    """Error of the randomised factorisation at an eighth of full rank over the exact one's."""
    rank = max(1, min(weight.shape) // 8)
    exact, quick = truncated_svd(weight, rank), randomized_svd(weight, rank)
    lost = [(weight - f.left * f.values @ f.right.T).norm() for f in (quick, exact)]
    return float(lost[0] / lost[1])


def _grid(weight: Tensor, bits: int, kind: Any) -> UniformGrid:
    """A symmetric grid for each row."""
    scale, zero, group = IntQuantizer(bits, "row", True, kind).fit(weight)
    return UniformGrid(scale, zero, group, 1, 2**bits - 1)


def _rounder(grid: UniformGrid) -> Any:
    """One column to its grid in plain torch: the rival of the kernel."""
    scale, zero = grid.scale, grid.zero

    def quantize(w: Tensor, first: int) -> Tensor:
        return ((w / scale).round_().add_(zero).clamp_(grid.low, grid.high) - zero) * scale

    return quantize


def _grids() -> list[str]:
    return [f"int{bits} row {kind}" for bits in BITS for kind in RANGES]


def _means(layers: list[dict[str, float]], *keys: str) -> list[float]:
    return [statistics.fmean(layer[key] for layer in layers) for key in keys]
