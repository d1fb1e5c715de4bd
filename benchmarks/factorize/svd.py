"""SVD of what layers put out beside SVD of their weights, at equal ranks."""

from typing import Any

from benchmarks.bench import Bench
from benchmarks.paired import difference, measured, quality, spelt
from laconic.factorize.svd import SVD

KEEPS = (0.8, 0.6, 0.4)
INPUTS = ("activation", "none")


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.models().items():
        whole = measured(bench, name, model, ())
        rows.append([name, "1", "dense", "", "", 1.0, quality(whole), 0.0, *[""] * 5])
        for keep in KEEPS:
            runs = {
                inputs: measured(bench, name, model, SVD(keep=keep, inputs=inputs))
                for inputs in INPUTS
            }
            gap = difference(runs["activation"], runs["none"])
            for inputs, run in runs.items():
                against = difference(run, whole)
                rows.append([
                    name, f"{keep:g}", inputs, run["bits"], run["resident_bits"], run["kept"],
                    quality(run), against["difference"], spelt(against),
                    gap["difference"] if inputs == "activation" else "",
                    spelt(gap) if inputs == "activation" else "", run["error"], run["seconds"],
                ])  # fmt: skip
            _check(bench, name, keep, runs, gap, whole)
    columns = [
        "model", "keep", "inputs", "stored bits", "resident bits", "kept", "quality", "excess nats",
        "95 %", "less weight SVD", "95 %", "layer error", "s",
    ]  # fmt: skip
    bench.table(
        "factors of low rank; keep is the share of the parameters of each layer; excess loss against "
        "the dense model; quality is perplexity, or accuracy of the classifiers",
        columns, rows,
    )  # fmt: skip


def _check(
    bench: Bench, name: str, keep: float, runs: dict[str, Any], gap: dict[str, Any],
    whole: dict[str, Any],
) -> None:  # fmt: skip
    ours, theirs = runs["activation"], runs["none"]
    bench.check(
        f"{name}, keep {keep:g}: activation SVD loses less than weight SVD",
        gap["verdict"] == "better",
        ours=difference(ours, whole)["difference"], theirs=difference(theirs, whole)["difference"],
        low=gap["low"], high=gap["high"], verdict=gap["verdict"],
    )  # fmt: skip
    bench.check(
        f"{name}, keep {keep:g}: the same bytes in memory, and within 2 % of each other on disk",
        ours["resident_bits"] == theirs["resident_bits"]
        and abs(ours["bits"] / theirs["bits"] - 1) < 0.02,
        ours=ours["bits"], theirs=theirs["bits"],
    )  # fmt: skip
