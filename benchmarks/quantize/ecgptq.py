"""Entropy-coded GPTQ: beside GPTQ at equal stored bits, and budgets, of the file and of memory.

Every language model is calibrated on the first 128 windows of text/train.txt and measured on
text/valid.txt. `A < B` holds where the 95 % interval of the paired difference of their losses is below 0.
"""

from typing import Any

from benchmarks.bench import Bench
from benchmarks.paired import difference, envelope, measured, quality, spelt
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ

#: GPTQ from 1.7 to 3.8 stored bits; what is compared with is the lower envelope of these.
RIVALS = {
    "int2 g64": GPTQ(2), "int2 g32": GPTQ(2, 32), "int3 row minmax": GPTQ(3, "row", range="minmax"),
    "int3 row": GPTQ(3, "row"), "int3 g64 minmax": GPTQ(3, 64, range="minmax"), "int3 g64": GPTQ(3),
    "int3 g32": GPTQ(3, 32), "int4 g64": GPTQ(4),
}  # fmt: skip
BUDGETS = ("2bit", "2.5bit", "3bit", "40%")  # of files; the last of the whole file
RESIDENT = {"2.25bit": "int2 g64", "3.25bit": "int3 g64", "4.25bit": "int4 g64"}
CLOSE = 0.005


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.language_models().items():
        whole = measured(bench, name, model, ())
        rivals = {la: measured(bench, name, model, m) for la, m in RIVALS.items()}
        rows += [_row(name, f"gptq {label}", run, whole) for label, run in rivals.items()]
        _of_files(bench, name, model, whole, rivals, rows)
        _of_memory(bench, name, model, whole, rivals, rows)
    columns = [
        "model", "method", "stored bits", "resident bits", "kept", "perplexity", "excess nats", "95 %", "s",
    ]  # fmt: skip
    bench.table("entropy-coded GPTQ, and GPTQ", columns, rows)
    bench.note(
        "GPTQ at as many bits: the losses of each window, interpolated between the two nearest points of "
        "the lower envelope of its formats"
    )


def _of_files(
    bench: Bench, name: str, model: str, whole: dict[str, Any], rivals: dict[str, Any],
    rows: list[list[Any]],
) -> None:  # fmt: skip
    for budget in BUDGETS:
        spread = measured(bench, name, model, ECGPTQ(), budget)
        rows.append(_row(name, f"ecgptq --budget {budget}", spread, whole))
        wanted = float(budget.rstrip("bit%")) / (100 if budget.endswith("%") else 1)
        met = spread["kept"] if budget.endswith("%") else spread["bits"]
        bench.check(
            f"{name}: the budget {budget} is kept, and missed by at most 0.5 %",
            (1 - CLOSE) * wanted <= met <= wanted, met=met,
        )  # fmt: skip
        if budget.endswith("%"):
            continue
        even = measured(bench, name, model, ECGPTQ(round(spread["bits"], 3)))
        rows.append(_row(name, f"ecgptq bits={spread['bits']:.3f}", even, whole))
        found = difference(spread, even)
        bench.check(
            f"{name}: {budget} spread over the layers loses no more than as many bits for each",
            found["verdict"] != "worse", difference=found["difference"], ci=spelt(found),
        )  # fmt: skip
        for label, ours in (("ecgptq", even), ("ecgptq --budget", spread)):
            theirs = envelope(list(rivals.values()), ours["bits"])
            found = difference(ours, theirs)
            bench.check(
                f"{name}, {budget}: {label} < gptq at as many stored bits",
                found["verdict"] == "better",
                ours=difference(ours, whole)["difference"],
                theirs=difference(theirs, whole)["difference"], ci=spelt(found),
            )  # fmt: skip


def _of_memory(
    bench: Bench, name: str, model: str, whole: dict[str, Any], rivals: dict[str, Any],
    rows: list[list[Any]],
) -> None:  # fmt: skip
    for budget, label in RESIDENT.items():
        even = rivals[label]
        limit = f"{max(float(budget[:-3]), even['resident_bits']):.4f}bit resident"
        mixed = measured(bench, name, model, GPTQ(), limit)
        rows.append(_row(name, f"gptq --budget {budget} --resident", mixed, whole))
        found = difference(mixed, even)
        bench.check(
            f"{name}: mixed integers in {budget} of memory lose no more than {label}",
            found["verdict"] != "worse" and mixed["resident_bits"] <= even["resident_bits"] + 1e-3,
            bits=mixed["resident_bits"], difference=found["difference"], ci=spelt(found),
        )  # fmt: skip


def _row(name: str, label: str, run: dict[str, Any], whole: dict[str, Any]) -> list[Any]:
    found = difference(run, whole)
    return [
        name, label, run["bits"], run["resident_bits"], run["kept"], quality(run), found["difference"],
        spelt(found), run["seconds"],
    ]  # fmt: skip
