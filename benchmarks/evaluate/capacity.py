"""Capacity: errors on noise beside those of the sheet, and whether they tell how well models train and round.

Models of bytes are trained with their weights projected to a format in every step, all on the same text in the
same order. The law is fitted to the dense runs, rho to each format's.
"""

from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks.bench import Bench
from benchmarks.evaluate._mini_law import BACKWARDS, PROJECTIONS, WIDTHS, run
from laconic.evaluate.capacity import capacity
from laconic.evaluate.scaling import Run, fit
from laconic.models.open import open_source
from laconic.tensors import IntQuantizer

#: Formats of ours that the sheet measured, and its error.
SHEET = {
    "bcq:bits=1": 0.3633,  # one bit is a grid of two levels, whatever it is called
    "fp:format=e2m1,group=16,range=minmax": 0.00886,
    "fp:format=mxfp4,range=minmax": 0.01322,
    "magnitude:sparsity=0.25": 0.00835,
    "magnitude:sparsity=0.5": 0.0714,
    "magnitude:sparsity=0.75": 0.2766,
    "magnitude:pattern=2:4": 0.1323,
}
#: Its symmetric integers, of a value less than ours.
NARROWER = {
    "rtn:bits=2,group=32,range=minmax": 0.4326,
    "rtn:bits=3,group=32,range=minmax": 0.0513,
    "rtn:bits=4,group=32,range=minmax": 0.00941,
    "rtn:bits=3,group=128,range=minmax": 0.0751,
    "rtn:bits=4,group=128,range=minmax": 0.01379,
}
#: Best scalar grids of the sheet, which bound ours of the same bits from below; codebooks go on.
OPTIMAL = {2: 0.1190, 3: 0.0376, 4: 0.01158}
RISING = (
    [f"rtn:bits={bits},group=row" for bits in (2, 3, 4, 5, 6, 8)],
    [f"rtn:bits=4,group={group}" for group in (256, 128, 64, 32, 16)],
    [f"magnitude:sparsity={share}" for share in (0.75, 0.5, 0.25)],
    ["rtn:bits=2,group=row", "gptvq:bits=2,dim=1", "gptvq:bits=2,dim=2", "gptvq:bits=2,dim=4"],
)
STEPS = {"quick": 100, "full": 300}
SIZES = {"quick": tuple(WIDTHS)[:2], "full": tuple(WIDTHS)}
LENGTHS = (0.4, 1)  # shares of the steps that dense models are trained for
HALF, INT4, BOTH = (
    "magnitude:sparsity=0.5",
    "rtn:bits=4,group=32,range=minmax",
    "magnitude:sparsity=0.5+rtn:bits=4,group=32,range=minmax",
)


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    _sheet(bench)
    _order(bench)
    _law(bench)
    _backward(bench)
    for name, model in bench.language_models().items():
        _transfer(bench, name, model)


def _sheet(bench: Bench) -> None:
    rows = []
    best = {
        spec: expected
        for bits, expected in OPTIMAL.items()
        for spec in (f"rtn:bits={bits},group=row,symmetric=false", f"bcq:bits={bits}")
    }
    for spec, expected in (SHEET | NARROWER | best).items():
        found = capacity(spec)
        if spec in SHEET:
            bench.check(
                f"{spec}: the error of the sheet within 1 %",
                abs(found.gmse / expected - 1) <= 0.01, ours=found.gmse, sheet=expected,
            )  # fmt: skip
        if spec in NARROWER:
            bench.check(
                f"{spec}: less than the error of the sheet, whose grid has a value less",
                found.gmse < expected, ours=found.gmse, sheet=expected,
            )  # fmt: skip
        bits = (found.capacity_bits, found.stored_bits, found.resident_bits)
        rows.append([spec, found.gmse, expected, *bits])
    columns = ["format", "error", "sheet, or best half-grid", "worth", "bits in files", "in memory"]
    bench.table("share of the energy of Gaussian noise that is lost", columns, rows)


def _order(bench: Bench) -> None:
    for specs in RISING:
        worth = [capacity(spec).capacity_bits for spec in specs]
        bench.check(
            f"worth rises from {specs[0]} to {specs[-1]}", worth == sorted(worth),
            worth=[round(bits, 3) for bits in worth],
        )  # fmt: skip


def _law(bench: Bench) -> None:
    steps, runs = STEPS[bench.slice], []
    for spec, projection in PROJECTIONS.items():
        for width in SIZES[bench.slice]:
            for share in (
                *((0.2, 0.7) if spec == "dense" else ()),
                *(LENGTHS if spec == "dense" else (1,)),
            ):
                key = f"{spec} {width} {round(share * steps)}"
                found = bench.cached(
                    key,
                    lambda p=projection, w=width, s=share: run(bench.data, w, round(s * steps), p),
                )
                runs.append(Run(found[0], found[1], spec, found[2]))
    law = fit(runs)
    formats = [spec for spec in law.rho if spec != "dense"]
    order = float(
        spearmanr([law.gmse[f] for f in formats], [law.rho[f] for f in formats]).statistic
    )
    bench.check(
        "rho falls as the error of noise rises: Spearman at most -0.9",
        order <= -0.9 + 1e-9,  # one pair of five in the other order
        spearman=order,
    )
    product = law.rho[HALF] * law.rho[INT4]
    bench.check(
        "rho of half the weights at 4 bits is the product of both within 0.1",
        abs(law.rho[BOTH] - product) < 0.1, both=law.rho[BOTH], product=product,
    )  # fmt: skip
    bench.note(
        f"law: A {law.a:.3g}, B {law.b:.3g}, E {law.e:.3g}, alpha {law.alpha:.3g}, beta {law.beta:.3g}; relative "
        f"errors of the losses {law.residual:.2%} in the square mean"
    )
    longest = {
        f: [r.loss for r in runs if r.format == f and r.tokens == max(x.tokens for x in runs)]
        for f in law.rho
    }
    rows: list[list[Any]] = [
        [f, law.gmse.get(f, 0.0), law.rho[f], law.left_out.get(f, "-"), *longest[f]]
        for f in law.rho
    ]
    columns = ["format", "error of noise", "rho", "rho by the link, left out", *(f"loss at width {w}" for w in SIZES[bench.slice])]  # fmt: skip
    bench.table(f"models of bytes trained in formats, {steps} steps", columns, rows)


def _backward(bench: Bench) -> None:
    width, steps = SIZES[bench.slice][-1], STEPS[bench.slice]
    loss = {
        rule: bench.cached(f"backward {rule} {width} {steps}", lambda p=p: run(bench.data, width, steps, p))[2]
        for rule, p in BACKWARDS.items()
    }  # fmt: skip
    bench.check(
        "three quarters of zeros: the banded gradient ends lower than that of what is kept",
        loss["banded"] < loss["kept"], **loss,
    )  # fmt: skip


def _transfer(bench: Bench, name: str, model: str) -> None:
    """Whether noise tells what rounding weights of trained models loses."""
    source = open_source(model)
    layers = [layer for block in source.blocks for layer in block.layers]
    tensors = source.read({layer.parameter for layer in layers})
    for bits in (3, 4):
        expected = capacity(f"rtn:bits={bits},group=64").gmse
        grid, ratios = IntQuantizer(bits, 64, True, "mse"), []
        for layer in layers:
            weight = layer.take(tensors).float()
            lost = (grid.project(weight) - weight).square().sum() / weight.square().sum()
            ratios.append(float(lost) / expected)
        bench.check(
            f"{name}: rounding to {bits} bits loses what noise does on every layer, within a factor of 2",
            min(ratios) > 0.5 and max(ratios) < 2, least=min(ratios), most=max(ratios),
        )  # fmt: skip
