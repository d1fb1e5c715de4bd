"""Entropy-coded GPTQ: beside GPTQ at equal stored bits, and budgets, of the file and of memory.

Every language model is calibrated on the first 128 windows of text/train.txt and measured on
text/valid.txt. `A < B` holds where the 95 % interval of the paired difference of their losses is below 0.
"""

from typing import Any

from benchmarks.bench import Bench
from benchmarks.paired import compressed, dense, difference, quality, spelt
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ

#: Near 2, 2.5 and 3 stored bits; at each the grids of GPTQ that come near it.
RIVALS = {
    "2": {"int2 g32": GPTQ(2, 32), "int3 row minmax": GPTQ(3, "row", range="minmax")},
    "2.5": {"int3 row": GPTQ(3, "row"), "int3 g64 minmax": GPTQ(3, 64, range="minmax")},
    "3": {"int3 g64": GPTQ(3, 64), "int3 g32": GPTQ(3, 32)},
}
BUDGETS = ("2bit", "2.5bit", "3bit", "20%")  # of files; the last of the whole file
RESIDENT = {"2.25bit": GPTQ(2), "3.25bit": GPTQ(3), "4.25bit": GPTQ(4)}  # groups of 64
CLOSE = 0.005


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.language_models().items():
        whole = bench.cached(f"dense {name}", lambda m=model: dense(bench, m))
        _at_equal_bits(bench, name, model, whole, rows)
        _budgets(bench, name, model, whole, rows)
        _of_memory(bench, name, model, whole, rows)
    columns = [
        "model", "method", "stored bits", "resident bits", "kept", "perplexity", "excess nats", "95 %", "s",
    ]  # fmt: skip
    bench.table("entropy-coded GPTQ, and GPTQ", columns, rows)


def _at_equal_bits(
    bench: Bench, name: str, model: str, whole: dict[str, Any], rows: list[list[Any]]
) -> None:
    for bits, rivals in RIVALS.items():
        for label, rival in rivals.items():
            theirs = _run(bench, name, model, f"gptq {label}", rival)
            rows.append(_row(name, f"gptq {label}", theirs, whole))
            same = ECGPTQ(round(theirs["bits"], 4))
            ours = _run(bench, name, model, f"ecgptq as {label}", same)
            rows.append(_row(name, f"ecgptq bits={same.bits:.3f}", ours, whole))
            found = difference(ours, theirs)
            bench.check(
                f"{name}: near {bits} stored bits, ecgptq < gptq {label}, at no more bits",
                found["verdict"] == "better" and ours["bits"] <= (1 + CLOSE) * theirs["bits"],
                bits=ours["bits"], theirs=theirs["bits"], difference=found["difference"], ci=spelt(found),
            )  # fmt: skip


def _budgets(
    bench: Bench, name: str, model: str, whole: dict[str, Any], rows: list[list[Any]]
) -> None:
    for budget in BUDGETS:
        spread = _run(bench, name, model, f"ecgptq {budget}", ECGPTQ(), budget)
        rows.append(_row(name, f"ecgptq --budget {budget}", spread, whole))
        wanted = float(budget.rstrip("bit%")) / (100 if budget.endswith("%") else 1)
        met = spread["kept"] if budget.endswith("%") else spread["bits"]
        bench.check(
            f"{name}: the budget {budget} is kept, and missed by at most 0.5 %",
            (1 - CLOSE) * wanted <= met <= wanted, met=met,
        )  # fmt: skip
        even = _run(bench, name, model, f"ecgptq even {budget}", ECGPTQ(round(spread["bits"], 4)))
        rows.append(_row(name, f"ecgptq bits={spread['bits']:.3f}", even, whole))
        found = difference(spread, even)
        bench.check(
            f"{name}: {budget} spread over the layers loses no more than as many bits for each",
            found["verdict"] != "worse", difference=found["difference"], ci=spelt(found),
        )  # fmt: skip


def _of_memory(
    bench: Bench, name: str, model: str, whole: dict[str, Any], rows: list[list[Any]]
) -> None:
    for budget, uniform in RESIDENT.items():
        even = _run(bench, name, model, f"gptq int{uniform.bits} g64", uniform)
        limit = f"{max(float(budget[:-3]), even['resident_bits']):.4f}bit resident"
        mixed = _run(bench, name, model, f"gptq {budget} resident", GPTQ(), limit)
        rows.append(_row(name, f"gptq int{uniform.bits} g64", even, whole))
        rows.append(_row(name, f"gptq --budget {budget} --resident", mixed, whole))
        found = difference(mixed, even)
        bench.check(
            f"{name}: mixed integers in {budget} of memory lose no more than int{uniform.bits} g64",
            found["verdict"] != "worse" and mixed["resident_bits"] <= even["resident_bits"] + 1e-3,
            bits=mixed["resident_bits"], difference=found["difference"], ci=spelt(found),
        )  # fmt: skip


def _run(
    bench: Bench, name: str, model: str, label: str, method: Any, budget: str | None = None
) -> dict[str, Any]:
    run: dict[str, Any] = bench.cached(
        f"{label} {name}", lambda: compressed(bench, model, method, budget)
    )
    return run


def _row(name: str, label: str, run: dict[str, Any], whole: dict[str, Any]) -> list[Any]:
    found = difference(run, whole)
    return [
        name, label, run["bits"], run["resident_bits"], run["kept"], quality(run), found["difference"],
        spelt(found), run["seconds"],
    ]  # fmt: skip
