"""Everything on integers: what weights, embeddings and each operator cost, beside one scale a layer.

Rivals round the same weights to one 4-bit grid a layer (as range the extremes, and the best) and inputs to 8 bits a
token; they leave embeddings and all operators float. `A < B` holds where the 95 % interval of the paired difference of
losses is below 0. Operators are also held against float ones on random inputs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.bench import LANGUAGE_DATA, RESNET, Bench
from benchmarks.paired import COMPARED, difference, measured, quality, spelt
from laconic.models.open import open_source
from laconic.numerics.integers.norms import integer_norm
from laconic.numerics.integers.products import Blocked, exact_product, integer_product
from laconic.numerics.integers.softmax import exponents, integer_softmax
from laconic.numerics.integers.tables import look_up, tabulate
from laconic.quantize.activations import Activations
from laconic.quantize.bct import BCT, PARTS
from laconic.quantize.rtn import RTN
from laconic.tensors import ShiftQuantizer
from laconic.tensors.shifted import spread_blocks

SIZES = (16, 32, 64, 128)
DROPS = {4: 0.02, 8: 0.005}  # accuracy that may be lost
WITHIN = 1 / 128

#: The method, and rivals.
CHAINS: Mapping[str, Sequence[Any]] = {
    "bct w4 a8": [BCT()], "one range a layer, w4 a8": [RTN(4, "tensor", range="minmax"), Activations(8)],
    "bct w8 a8": [BCT(wbits=8)], "w4 a8, linear layers alone": [BCT(parts="linear")],
    "one searched range a layer, w4 a8": [RTN(4, "tensor", range="mse"), Activations(8)],
    "w4, no search": [BCT(search=1)],
    "w4 a8, one shift a matrix": [BCT(block=8192)],
}  # fmt: skip
#: The method with one thing changed.
VARIANTS: Mapping[str, Sequence[Any]] = {
    "w8, 64 tokens a block": [BCT(wbits=8, tokens=64)],
    "w8, weights of attention at shift 8": [BCT(wbits=8, attention="fixed")],
    "w8, stream of 16 bits": [BCT(wbits=8, stream=16)],
    "w4, embeddings by rows": [BCT(embeddings="row")],
}
CLAIMS = (
    ("bct w4 a8", "one range a layer, w4 a8"), ("bct w4 a8", "one searched range a layer, w4 a8"),
    ("w4 a8, linear layers alone", "one searched range a layer, w4 a8"),
    ("w4 a8, linear layers alone", "one range a layer, w4 a8"),
    ("bct w4 a8", "w4, no search"), ("bct w4 a8", "w4 a8, one shift a matrix"),
)  # fmt: skip


def prove(bench: Bench) -> None:
    _check_operators(bench)
    rows: list[list[Any]] = []
    parts: list[list[Any]] = []
    blocks: list[list[Any]] = []
    for name, model in bench.models().items():
        if model.startswith(RESNET.partition("@")[0]) or name.startswith("moe"):
            bench.note(f"{name} was left out: no transformer, or one with experts")
            continue
        blocks += _check_blocks(bench, name, model)
        rows += _check_model(bench, name, model)
        dense = measured(bench, name, model, ())
        for part in PARTS:
            run = measured(bench, name, model, [BCT(parts=part)])
            found = difference(run, dense)
            parts.append([name, part, quality(run), found["difference"], spelt(found)])
        rows += _rows(bench, name, model, VARIANTS)
    bench.table("squared error of weights at 4 bits, by size of blocks", _COLUMNS, blocks)
    bench.table("one part alone: w4 a8", ["model", "part", "quality", "excess nats", "95 %"], parts)
    bench.table("models", COMPARED, rows)


_COLUMNS = ["model", *(f"{size}" for size in SIZES), "64, no search", "one scale", "layers"]


def _check_model(bench: Bench, name: str, model: str) -> list[list[Any]]:
    dense = measured(bench, name, model, ())
    runs = {label: measured(bench, name, model, chain) for label, chain in CHAINS.items()}
    for ours, theirs in CLAIMS:
        found = difference(runs[ours], runs[theirs])
        bench.check(
            f"{name}: {ours} < {theirs}", found["verdict"] == "better", **{
                key: found[key] for key in ("difference", "low", "high")
            }, resident=f"{runs[ours]['resident_bits']:.3f}/{runs[theirs]['resident_bits']:.3f}",
        )  # fmt: skip
    if bench.data_for(model) != bench.data / LANGUAGE_DATA:
        for bits, drop in DROPS.items():
            ours = quality(runs[f"bct w{bits} a8"])
            bench.check(
                f"{name}: {bits} bits lose less than {drop:.1%} of inputs",
                quality(dense) - ours < drop, dense=quality(dense), ours=ours,
            )  # fmt: skip
    return _rows(bench, name, model, CHAINS)


def _rows(
    bench: Bench, name: str, model: str, chains: Mapping[str, Sequence[Any]]
) -> list[list[Any]]:
    """Rows of the table of models."""
    dense = measured(bench, name, model, ())
    rows: list[list[Any]] = []
    for label, chain in chains.items():
        run = measured(bench, name, model, chain)
        excess = difference(run, dense)
        rows.append([
            name, label, run["bits"], run["resident_bits"], quality(run), excess["difference"],
            spelt(excess), run["error"], run["seconds"],
        ])  # fmt: skip
    return rows


def _check_blocks(bench: Bench, name: str, model: str) -> list[list[Any]]:
    """Weight errors by size of blocks, summed over layers; every block's with and without search."""
    source = open_source(model)
    layers = [layer for block in source.blocks for layer in block.layers if layer.kind == "linear"]
    totals, whole = torch.zeros(len(SIZES) + 2, dtype=torch.float64), 0.0
    worse = blocks = 0
    for layer in layers:
        weight = layer.take(source.read([layer.parameter])).float()
        off = [(ShiftQuantizer(4, n, n).project(weight) - weight).square() for n in SIZES]
        floor = (ShiftQuantizer(4, search=1).project(weight) - weight).square()
        one = (RTN(4, "tensor", range="minmax").compress_weight(weight).dense() - weight).square()
        totals += torch.stack([e.double().sum() for e in (*off, floor, one)])
        whole += float(weight.double().square().sum())
        searched, plain = (_per_block(e) for e in (off[SIZES.index(64)], floor))
        worse += int((searched > plain * (1 + 1e-6)).sum())
        blocks += searched.numel()
    shares = (totals / whole).tolist()
    bench.check(
        f"{name}: no block loses more with a search", worse == 0, worse=worse, blocks=blocks
    )
    bench.check(
        f"{name}: smaller blocks never lose more",
        all(a <= b for a, b in pairwise(shares[: len(SIZES)])), errors=_few(shares[: len(SIZES)]),
    )  # fmt: skip
    even = torch.randn(256, 192)
    bits = 8 * ShiftQuantizer(middle=True).quantize(even).resident_bytes / even.numel()
    bench.check("4 bits + 24 bits a block of 64 x 64", 7.987 < 32 / bits < 7.989, ratio=32 / bits)
    return [[name, *shares, len(layers)]]


def _check_operators(bench: Bench) -> None:
    """Integer operators against float ones on the same rounded inputs."""
    generator = torch.Generator().manual_seed(0)
    rounding = ShiftQuantizer(8, 1, 64)
    x = torch.randn(256, 192, generator=generator) * torch.exp2(
        torch.randint(-4, 5, (256, 1), generator=generator)
    )
    w = torch.randn(128, 192, generator=generator)
    a, b = (_blocked(m, q) for m, q in ((x, rounding), (w, ShiftQuantizer(4))))
    exact = exact_product(a, b)
    fast = F.linear(rounding.project(x).double(), ShiftQuantizer(4).project(w).double())
    bench.check("products: float64 is the integers' bit for bit", torch.equal(exact, fast))
    one, other = (
        Blocked(a.codes[:, :64], a.shift[:, :1], (1, 64)),
        Blocked(b.codes[:, :64], b.shift[:, :1], (64, 64)),
    )
    fp32 = F.linear(rounding.project(x[:, :64]), ShiftQuantizer(4).project(w)[:, :64])
    bench.check(
        "products: fp32 is the integers' bit for bit within a block",
        torch.equal(fp32.double(), exact_product(one, other)),
    )  # fmt: skip
    total, shift = integer_product(a, b)
    off = (total.double() * torch.exp2(-shift.double()) - exact).abs() * torch.exp2(shift.double())
    bench.check(
        "products: aligned sums are within K / 2 steps",
        off.max().item() <= 1.5,
        steps=off.max().item(),
    )
    codes, step = integer_softmax(exponents((x * 64).long(), 1 / 64))
    error = (
        (codes * torch.exp2(-step.double()) - torch.softmax((x * 64).long() / 64, -1)).abs().max()
    )
    bench.check("softmax is within 1/128", error.item() < WITHIN, error=error.item())
    for centre in (True, False):
        y = rounding.project(x).double()
        y = y - (y.mean(1, keepdim=True) if centre else 0)
        y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt()
        spread = spread_blocks(a.shift, (256, 192), (1, 64))
        error = (integer_norm(a.codes, spread, 1e-5, centre=centre) * 2.0**-12 - y).abs().max()
        bench.check(
            f"{'LayerNorm' if centre else 'RMSNorm'} is within 1/128", error.item() < WITHIN,
            error=error.item(),
        )  # fmt: skip
    entries, out = look_up(tabulate(F.gelu), a.codes, spread_blocks(a.shift, (256, 192), (1, 64)))
    scale = torch.exp2(out.double())
    bench.check(
        "GELU's table is GELU at every code, to 16 bits",
        torch.equal(entries.double(), (F.gelu(rounding.project(x).double()) * scale).round()),
    )  # fmt: skip


def _blocked(x: torch.Tensor, quantizer: ShiftQuantizer) -> Blocked:
    params = quantizer.fit(x)
    return Blocked(quantizer.encode(x, params), params.shift, params.block)


def _per_block(x: torch.Tensor) -> torch.Tensor:
    """Sums of `x` (R, C) over blocks of 64 x 64, ragged ones too."""
    rows = F.pad(x, (0, -x.shape[1] % 64, 0, -x.shape[0] % 64))
    return rows.reshape(rows.shape[0] // 64, 64, rows.shape[1] // 64, 64).sum((1, 3))


def _few(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
