"""Layer by layer: what the papers of codebooks, factors and zeros say of a single weight, on real inputs.

Layers see the inputs of the dense model. What holds by construction is checked on the inputs that methods are
fitted to; what is to generalise, on the windows after them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.layers import Layer, model_layers, output_error
from benchmarks.paired import training_data
from laconic.calibrate.layer_stats import LayerStats
from laconic.measure.speed import speed_ratio
from laconic.method import LayerMethod
from laconic.numerics.svd import whitened_svd
from laconic.prune.magnitude import Magnitude
from laconic.prune.nowag import NoWagPruner
from laconic.prune.wanda import Wanda
from laconic.quantize.aqlm import AQLM
from laconic.quantize.eora import EoRA
from laconic.quantize.gptq import GPTQ
from laconic.quantize.gptvq import GPTVQ
from laconic.quantize.nowag import NoWagVQ
from laconic.quantize.obr import OBR
from laconic.quantize.rtn import RTN
from laconic.tensors import CompressedTensor, Dense
from laconic.tensors.stored import Record

BLOCKS = 2  # of each model: the first and the last
RANK = 32
SCALED = 10.0  # a row whose readers divide by it computes the same
Found = dict[str, float]  # what is measured of one layer


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    for name, model in bench.language_models().items():
        layers = bench.cached(f"layers {name}", lambda m=model: _measured(bench, m))
        for key, check in CHECKS.items():
            check(bench, name, [layer[key] for layer in layers])
        for key in CHECKS:
            named = layers[0][key]
            means = {k: sum(layer[key][k] for layer in layers) / len(layers) for k in named}
            rows += [[name, len(layers), key, what, value] for what, value in means.items()]
    bench.note(
        "NoWag takes the lengths of columns first, in which scaled rows count for more: its zeros are not quite those "
        "of the rows as they were, as the paper's argument has it"
    )
    bench.table(
        "means over layers; errors are shares of the energy of the outputs",
        ["model", "layers", "of", "what", "mean"], rows,
    )  # fmt: skip


def _measured(bench: Bench, model: str) -> list[dict[str, Found]]:
    found = []
    for layer in model_layers(model, training_data(bench, model), bench.slice, BLOCKS):
        measures = (_gptvq, _aqlm, _nowag, _eora, _obr)
        found.append({f.__name__.strip("_"): f(layer) for f in measures})
    return found


def _made(layer: Layer, *chain: LayerMethod) -> CompressedTensor:
    record, stats = (
        Record(Dense(layer.weight)),
        LayerStats(layer.stats.layer, layer.stats.collected),
    )
    for method in chain:
        record = method.revise(layer.weight, record, stats)
    return record.weight


def _off(layer: Layer, value: CompressedTensor | Tensor, *, fitted: bool = False) -> float:
    dense = value if isinstance(value, Tensor) else value.dense(torch.float32)
    moment = layer.moment if fitted else layer.held_out
    return output_error(layer.matrix, dense.reshape(layer.matrix.shape).double(), moment)


def _bits(value: CompressedTensor) -> float:
    return 8 * value.resident_bytes / value.numel


def _gptvq(layer: Layer) -> Found:
    """Sheet 114."""
    pairs = GPTVQ(2, 2)
    made = _made(layer, pairs)
    groups = pairs.geometry(layer.weight.shape).grid
    each = pairs.entries_each * pairs.dim * 8 + 16
    vectors = -(-layer.matrix.shape[1] // pairs.dim) * pairs.dim / layer.matrix.shape[1]
    return {
        "2d": _off(layer, made, fitted=True),
        "2d not refitted": _off(layer, _made(layer, GPTVQ(2, 2, update=False)), fitted=True),
        "2d in bf16": _off(layer, _made(layer, GPTVQ(2, 2, entries="bf16")), fitted=True),
        "4d": _off(layer, _made(layer, GPTVQ(2, 4)), fitted=True),
        "4d diagonal": _off(layer, _made(layer, GPTVQ(2, 4, exact=False)), fitted=True),
        "bits": _bits(made),
        "bits by formula": pairs.bits * vectors
        + groups[0] * groups[1] * each / layer.matrix.numel(),
    }


def _check_gptvq(bench: Bench, name: str, layers: Sequence[Found]) -> None:
    _in_every(
        bench, f"{name}: refitting GPTVQ's codebooks lowers the loss", layers,
        lambda la: la["2d"] < la["2d not refitted"],
    )  # fmt: skip
    _at_most(
        bench,
        f"{name}: codebooks in int8 lose less than 1 % more",
        layers,
        "2d",
        "2d in bf16",
        1.01,
    )
    _at_most(
        bench, f"{name}: the exact step of 4 columns loses no more", layers, "4d", "4d diagonal", 1
    )
    worst = max(abs(la["bits"] / la["bits by formula"] - 1) for la in layers)
    bench.check(f"{name}: GPTVQ takes what the formula says, to 1 %", worst < 0.01, worst=worst)


def _aqlm(layer: Layer) -> Found:
    """Sheet 078."""
    by_rounds = {
        f"{rounds} rounds": _off(layer, _made(layer, AQLM(2, 8, 8, rounds=rounds, tolerance=0)), fitted=True)
        for rounds in (0, 1, 2, 3)
    }  # fmt: skip
    wide = _made(layer, AQLM(2, 8, 8, rounds=3, tolerance=0, beam=4))
    x = torch.randn(1, layer.matrix.shape[1], generator=torch.Generator().manual_seed(0))
    dense = wide.dense(torch.float32).reshape(layer.matrix.shape)
    product, whole = wide.matmul(x), x @ dense.T
    return {
        **by_rounds,
        "3 rounds, beam 4": _off(layer, wide, fitted=True),
        "product off": float((product - whole).norm() / whole.norm()),
        "product, times as fast as dense": speed_ratio(lambda: wide.matmul(x), lambda: x @ dense.T, 20),
    }  # fmt: skip


def _check_aqlm(bench: Bench, name: str, layers: Sequence[Found]) -> None:
    _in_every(
        bench, f"{name}: AQLM's loss never rises from round to round", layers,
        lambda la: la["1 rounds"] >= la["2 rounds"] >= la["3 rounds"],
    )  # fmt: skip
    _at_most(
        bench,
        f"{name}: 3 rounds lose less than 0.8 of residual k-means",
        layers,
        "3 rounds",
        "0 rounds",
        0.8,
    )
    _at_most(
        bench,
        f"{name}: a beam of 4 loses no more than one of 1",
        layers,
        "3 rounds, beam 4",
        "3 rounds",
        1,
    )
    worst = max(la["product off"] for la in layers)
    bench.check(
        f"{name}: AQLM's product is that of its dense weight, to 1e-4", worst < 1e-4, worst=worst
    )


def _nowag(layer: Layer) -> Found:
    """Sheet 074."""
    found = {
        f"{n} iterations": _distortion(layer, NoWagVQ(2, 4, iterations=n)) for n in (1, 2, 5, 20)
    }
    scaled = layer._replace(weight=layer.weight.clone())
    scaled.weight[::3] *= SCALED
    methods = {"nowag": NoWagPruner(0.5), "wanda": Wanda(0.5), "magnitude": Magnitude(0.5)}
    for label, method in methods.items():
        masks = [_made(la, method).dense(torch.float32) != 0 for la in (layer, scaled)]
        found[f"{label}: zeros that moved"] = float((masks[0] != masks[1]).double().mean())
    return found


def _distortion(layer: Layer, method: NoWagVQ) -> float:
    """Errors of weights times the energies of their inputs, which k-means lowers, over those of all."""
    off = layer.matrix - _made(layer, method).dense(torch.float32).reshape(layer.matrix.shape)
    energy = layer.moment.diagonal()
    return float(
        (off.double().square() * energy).sum() / (layer.matrix.double().square() * energy).sum()
    )


def _check_nowag(bench: Bench, name: str, layers: Sequence[Found]) -> None:
    keys = [f"{n} iterations" for n in (1, 2, 5, 20)]
    sums = [sum(la[key] for la in layers) for key in keys]
    bench.check(
        f"{name}: NoWag-VQ's distortion falls from iteration to iteration", sums == sorted(sums, reverse=True),
        **dict(zip((f"after_{n}" for n in (1, 2, 5, 20)), sums)),
    )  # fmt: skip
    moved = {
        m: max(la[f"{m}: zeros that moved"] for la in layers)
        for m in ("nowag", "wanda", "magnitude")
    }
    bench.check(
        f"{name}: rows that are scaled keep their zeros with Wanda, not by magnitude",
        moved["wanda"] < 0.001 < moved["magnitude"], **moved,
    )  # fmt: skip
    bench.check(f"{name}: and with NoWag", moved["nowag"] < 0.001, **moved)


def _eora(layer: Layer) -> Found:
    """Sheet 015. The rank with which int3 takes the bytes of int4 is the fair one."""
    first = _made(layer, RTN(3))
    lost = layer.matrix - first.dense(torch.float32).reshape(layer.matrix.shape)
    rank = min(RANK, *layer.matrix.shape)
    norm = layer.moment.diagonal().clamp(min=0).sqrt().float()
    norm = norm.clamp(min=1e-3 * norm.max())

    def behind(factors: Tensor) -> float:
        return _off(
            layer, first.dense(torch.float32).reshape(layer.matrix.shape) + factors, fitted=True
        )

    def rounded(values: Tensor) -> Tensor:
        u, s, v = torch.linalg.svd(values.double(), full_matrices=False)
        return ((u[:, :rank] * s[:rank]) @ v[:rank]).float()

    left, right = whitened_svd(lost, layer.moment, rank, damp=1e-9)
    fair = int((4 - 3) * layer.matrix.numel() / 16 / sum(layer.matrix.shape))
    halves = layer._replace(weight=layer.weight.bfloat16())  # factors are of the model's dtype
    equal = _made(halves, GPTQ(3), EoRA(max(1, fair)))
    return {
        "int3": _off(layer, first, fitted=True),
        "eora": behind(left @ right),
        "act-s": behind(rounded(lost * norm) / norm),
        "svd": behind(rounded(lost)),
        "tail": _tail(lost, layer, rank),
        "gptq int3 and eora of the same bytes": _off(layer, equal),
        "gptq int4": _off(layer, _made(layer, GPTQ(4))),
        "bits of int3 and eora": _bits(equal),
    }  # fmt: skip


def _tail(lost: Tensor, layer: Layer, rank: int) -> float:
    """What no factors of a rank can give back: squared singular values of D L behind the first, over all energy."""
    values, vectors = torch.linalg.eigh(layer.moment)
    root = vectors * values.clamp(min=0).sqrt()
    singular = torch.linalg.svdvals(lost.double() @ root)
    whole = (layer.matrix.double() @ root).square().sum()
    return float(singular[rank:].square().sum() / whole)


def _check_eora(bench: Bench, name: str, layers: Sequence[Found]) -> None:
    for other in ("act-s", "svd"):
        _in_every(
            bench, f"{name}: EoRA's factors lose no more than those of {other}", layers,
            lambda la, other=other: la["eora"] <= la[other] + 1e-6,  # type: ignore[misc]
        )  # fmt: skip
    worst = max(abs(la["eora"] - la["tail"]) for la in layers)
    bench.check(f"{name}: EoRA loses the tail of the spectrum, to 1e-4", worst < 1e-4, worst=worst)


def _obr(layer: Layer) -> Found:
    """Sheet 016."""
    made, paired = _made(layer, OBR(4)), _made(layer, OBR(4, pattern="2:4"))
    paper = {"order": "natural", "rescale": False}
    mask = made.dense(torch.float32).reshape(layer.matrix.shape) != 0
    scale = 16 / layer.matrix.shape[1]
    return {
        "obr": _off(layer, made),
        "wanda, gptq": _off(layer, _made(layer, Wanda(0.5), GPTQ(4, "row"))),
        "wanda, rtn": _off(layer, _made(layer, Wanda(0.5), RTN(4, "row"))),
        "paper, alpha 0.5": _off(layer, _made(layer, OBR(4, alpha=0.5, **paper))),
        "paper, alpha 0.5, rounded": _off(layer, _made(layer, OBR(4, alpha=0.5, tail="rtn", **paper))),
        "paper, alpha 1": _off(layer, _made(layer, OBR(4, alpha=1, **paper))),
        "most kept in a row": float(mask.double().mean(dim=1).max()),
        "bits over 3": _bits(made) - scale - 3,
        "bits of 2:4 over 3": _bits(paired) - scale - 3,
    }  # fmt: skip


def _check_obr(bench: Bench, name: str, layers: Sequence[Found]) -> None:
    for ours, theirs in (("obr", "wanda, gptq"), ("wanda, gptq", "wanda, rtn")):
        _in_every(
            bench, f"{name}: {ours} < {theirs}", layers,
            lambda la, ours=ours, theirs=theirs: la[ours] < la[theirs],  # type: ignore[misc]
        )  # fmt: skip
    for tail in ("", ", rounded"):
        _at_most(
            bench, f"{name}: OBR's second transfer pays{tail}", layers, f"paper, alpha 0.5{tail}", "paper, alpha 1", 1
        )  # fmt: skip
    most = max(la["most kept in a row"] for la in layers)
    bench.check(f"{name}: OBR keeps its zeros", most <= 0.5 + 1e-6, most=most)
    over = {key: max(la[key] for la in layers) for key in ("bits over 3", "bits of 2:4 over 3")}
    bench.check(
        f"{name}: int4 with half of the weights takes 3 bits and its scales, or less", max(over.values()) < 0.03,
        rows=over["bits over 3"], pattern=over["bits of 2:4 over 3"],
    )  # fmt: skip


def _in_every(
    bench: Bench, claim: str, layers: Sequence[Found], holds: Callable[[Found], bool]
) -> None:
    count = sum(map(holds, layers))
    bench.check(f"{claim} in every layer", count == len(layers), layers=len(layers), holds=count)


def _at_most(
    bench: Bench, claim: str, layers: Sequence[Found], ours: str, theirs: str, factor: float
) -> None:
    sums = [sum(la[key] for la in layers) for key in (ours, theirs)]
    bench.check(
        claim, sums[0] <= factor * sums[1], ours=sums[0], theirs=sums[1], ratio=sums[0] / sums[1]
    )


CHECKS = {
    "gptvq": _check_gptvq, "aqlm": _check_aqlm, "nowag": _check_nowag, "eora": _check_eora, "obr": _check_obr,
}  # fmt: skip
