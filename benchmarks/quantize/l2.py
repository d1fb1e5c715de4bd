"""L2 beside rounding to nearest and entropy-coded GPTQ at equal stored bytes.

Classifiers of images are asked for whole files 6, 10 and 16 times smaller than 32 bits a parameter, other
models for 2 and 3 bits a weight. All are fitted to the first 128 windows (images) of training data. What the
formats of RTN lose is interpolated at L2's bits between the points of their lower envelope.
"""

from typing import Any

import torch

from benchmarks.bench import IMAGE_DATA, Bench
from benchmarks.paired import difference, envelope, measured, quality, spelt
from laconic.models.open import open_source
from laconic.quantize._l2_size import entropy, start
from laconic.quantize._l2_student import Student
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.l2 import L2
from laconic.quantize.rtn import RTN

RATIOS, BITS = (6.0, 10.0, 16.0), (2.0, 3.0)
TENSOR = [RTN(bits, "tensor", range="minmax") for bits in (2, 3, 4, 5, 6)]
ROW = [RTN(bits, "row", range="mse") for bits in (2, 3, 4, 5)]
NEAR = 0.05  # of the size that was asked for
COUNTED = (1.5, 2.5, 4.0)  # bits at which the counter is compared with the entropy
COUNTER = 0.02  # of which it may be off
BESIDE = 400  # bytes of a layer's header and tables


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.models().items():
        _counter(bench, name, model)
        whole = measured(bench, name, model, ())
        rivals = {
            "rtn tensor": [measured(bench, name, model, method) for method in TENSOR],
            "rtn row": [measured(bench, name, model, method) for method in ROW],
        }
        images = bench.data_for(model) == bench.data / IMAGE_DATA
        for method in [L2(ratio=r) for r in RATIOS] if images else [L2(bits=b) for b in BITS]:
            ours = measured(bench, name, model, method)
            _size(bench, name, method, ours)
            swept = measured(bench, name, model, ECGPTQ(round(min(8.0, ours["bits"]), 3)))
            theirs = {la: envelope(runs, ours["bits"]) for la, runs in rivals.items()}
            theirs["ecgptq"] = swept
            _loses_less(bench, name, method, ours, theirs)
            rows.append(_row(name, _label(method), ours, whole))
            rows += [_row(name, label, run, whole) for label, run in theirs.items()]
    columns = [
        "model", "method", "stored bits", "resident bits", "kept", "quality", "excess nats", "95 %", "s",
    ]  # fmt: skip
    bench.table(
        "at equal stored bits; quality is perplexity, or accuracy of the classifiers", columns, rows
    )
    bench.note(
        "of rtn: losses at L2's bits, between two of its formats; the rest of a row is of the one below"
    )


def _label(method: L2) -> str:
    return f"l2 bits={method.bits:g}" if method.ratio is None else f"l2 ratio={method.ratio:g}"


def _size(bench: Bench, name: str, method: L2, ours: dict[str, Any]) -> None:
    """What was asked for is met."""
    wanted, met = method.bits, ours["bits"]
    if method.ratio is not None:
        wanted, met = method.ratio, 1 / ours["kept"]
    bench.check(
        f"{name}: {_label(method)} is met within 5 %", abs(met / wanted - 1) <= NEAR, met=met
    )


def _loses_less(
    bench: Bench, name: str, method: L2, ours: dict[str, Any], theirs: dict[str, dict[str, Any]]
) -> None:
    for label, run in theirs.items():
        found = difference(ours, run)
        smaller = label != "ecgptq" or ours["bits"] <= 1.005 * run["bits"]
        bench.check(
            f"{name}: {_label(method)} < {label} at as many stored bits",
            found["verdict"] == "better" and smaller,
            ours=quality(ours), difference=found["difference"], ci=spelt(found), bits=ours["bits"],
        )  # fmt: skip


def _counter(bench: Bench, name: str, model: str) -> None:
    """The smoothed count of bits, the entropy of the codes, and their bytes."""

    def measure() -> list[list[float]]:
        torch.set_num_threads(1)
        student = Student(open_source(model))
        found = []
        for bits in COUNTED:
            start(student, bits)
            true = entropy(student)
            found.append([float(student.bits()), true, true + student.beside, len(student.names)])
        return found

    for bits, (soft, true, coded, layers) in zip(COUNTED, bench.cached(f"counter {name}", measure)):
        bench.check(
            f"{name}, {bits:g} bits: the counter is off by less than 2 % of the entropy",
            abs(soft / true - 1) < COUNTER, soft=soft, true=true,
        )  # fmt: skip
        bench.check(
            f"{name}, {bits:g} bits: coded in 1 % more than the entropy, and {BESIDE} bytes a layer",
            coded <= 1.01 * true + 8 * BESIDE * layers, coded=coded, entropy=true,
        )  # fmt: skip


def _row(name: str, label: str, run: dict[str, Any], whole: dict[str, Any]) -> list[Any]:
    found = difference(run, whole)
    return [
        name, label, run["bits"], run["resident_bits"], run["kept"], quality(run), found["difference"],
        spelt(found), run["seconds"],
    ]  # fmt: skip
