"""Methods beside each other: calibrated on training data, measured on the same held-out windows."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import laconic
from benchmarks.bench import IMAGE_DATA, LANGUAGE_DATA, Bench
from laconic.allocate.pareto import front, lower_hull
from laconic.calibrate.data import Labelled
from laconic.calibrate.inputs import Subject, read_inputs
from laconic.evaluate.run import QUICK
from laconic.measure.losses import Batch, labelled_batches, language_batches, measure_losses
from laconic.measure.paired import bootstrap
from laconic.method import Method, Needs
from laconic.spelling import spell
from laconic.tensors import CompressedTensor, Masked
from laconic.tensors.modules import CompressedModule
from laconic.tensors.stacked import Stacked

TRAINING = {
    LANGUAGE_DATA: "text/train.txt",
    "sst2/dev.tsv": "sst2/train.tsv",
    IMAGE_DATA: "vision/cifar10-train.tar",
}
BATCH = 8
COMPARED = [
    "model", "method", "stored bits", "resident bits", "quality", "excess nats", "95 %",
    "layer error", "s",
]  # fmt: skip


def compare(
    bench: Bench, name: str, model: str, chains: Mapping[str, Sequence[Method]],
    claims: Sequence[tuple[str, str]],
    *, change: Callable[[str, Path], Path] | None = None,
) -> list[list[Any]]:  # fmt: skip
    """Runs `chains` on a model, checks that the first of each claim loses less, returns rows of a table.

    The table has the columns `COMPARED`. A claim holds where the 95 % interval of the paired difference
    excludes 0.
    """
    whole = measured(bench, name, model, ())
    runs = {
        label: measured(bench, name, model, chain, change=change) for label, chain in chains.items()
    }
    excess = {label: difference(run, whole) for label, run in runs.items()}
    for ours, theirs in claims:
        found = difference(runs[ours], runs[theirs])
        bench.check(
            f"{name}: {ours} < {theirs}", found["verdict"] == "better",
            ours=excess[ours]["difference"], theirs=excess[theirs]["difference"],
            low=found["low"], high=found["high"],
            stored=f"{runs[ours]['bits']:.2f}/{runs[theirs]['bits']:.2f}",
            resident=f"{runs[ours]['resident_bits']:.2f}/{runs[theirs]['resident_bits']:.2f}",
        )  # fmt: skip
    return [
        [
            name, label, run["bits"], run["resident_bits"], quality(run), excess[label]["difference"],
            spelt(excess[label]), run["error"], run["seconds"],
        ]
        for label, run in runs.items()
    ]  # fmt: skip


def measured(
    bench: Bench, name: str, model: str, chain: Method | Sequence[Method], budget: str | None = None,
    *, change: Callable[[str, Path], Path] | None = None, tables: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`compressed`, or `dense` for no methods; once for all proofs that want the same of a model."""
    methods = (chain,) if isinstance(chain, Method) else tuple(chain)
    words = [" + ".join(spell(method) for method in methods) or "dense", budget or "", name]
    words.append("" if change is None else change.__name__)

    def run() -> dict[str, Any]:
        if not methods and change is None:
            return dense(bench, model)
        return compressed(bench, model, methods, budget, change=change, tables=tables)

    found: dict[str, Any] = bench.cached(" ".join(w for w in words if w), run, shared=True)
    return found


def dense(bench: Bench, model: str) -> dict[str, Any]:
    """Losses of the model as it is."""
    return _losses(bench, model, laconic.load(model, dtype=torch.float32))


def compressed(
    bench: Bench, model: str, methods: Method | Sequence[Method],
    budget: str | None = None, *, change: Callable[[str, Path], Path] | None = None,
    tables: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Sizes, zeros and losses of the model after `methods`, reloaded from its files.

    `change` writes another form of the model into a folder first, which is compressed instead. `tables` is
    where what a budget measures is kept for the next one.
    """
    chain = (methods,) if isinstance(methods, Method) else tuple(methods)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        needs = any(method.needs is not Needs.NOTHING for method in chain)
        data = training_data(bench, model) if needs else None
        source = change(model, Path(folder) / "changed") if change else model
        report = laconic.compress(
            source, chain, data, out=out, budget=budget, measured=tables
        ).report
        loaded = laconic.load(out, dtype=torch.float32)
        zeros = [(int((v == 0).sum()), list(v.shape)) for v in _pruned(loaded)]
        return {
            **_losses(bench, model, loaded),
            "bits": report.bits_per_weight,
            "resident_bits": report.resident_bits_per_weight,
            "kept": report.kept,
            "error": sum(la["error"] * la["weights"] for la in report.layers)
            / sum(la["weights"] for la in report.layers),
            "zeros": zeros,
            "layers": len(report.layers),
            "notes": sorted({note for la in report.layers for note in la["notes"]}),
            "seconds": report.seconds,
        }


def losses(bench: Bench, model: str, path: str) -> dict[str, Any]:
    """Losses of the model at `path`, which `model` became."""
    return _losses(bench, model, laconic.load(path, dtype=torch.float32))


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Mean loss of ours minus theirs in nats, its 95 % interval over windows, and who loses less."""
    values = Tensor(ours["nll"]).double() - Tensor(theirs["nll"]).double()
    predictions = Tensor(ours["predictions"]).double()
    low, high = bootstrap(values, predictions)
    verdict = "better" if high < 0 else "worse" if low > 0 else "tie"
    mean = (values.sum() / predictions.sum()).item()
    return {"difference": mean, "low": low, "high": high, "verdict": verdict}


def envelope(runs: Sequence[dict[str, Any]], bits: float, axis: str = "bits") -> dict[str, Any]:
    """What the best of `runs` loses at `bits`: between the neighbours on their lower convex envelope.

    `axis` is what counts, `bits` in files or `resident_bits`; beyond its ends the envelope is its last run.
    """
    points = np.array([[run[axis], sum(run["nll"])] for run in runs])
    best = front(points)
    hull = [runs[best[i]] for i in lower_hull(*points[best].T)]
    below = [run for run in hull if run[axis] <= bits]
    above = [run for run in hull if run[axis] > bits]
    if not below or not above:
        return (below or above)[-1 if below else 0]
    a, b = below[-1], above[0]
    share = (bits - a[axis]) / (b[axis] - a[axis])
    nll = [x + share * (y - x) for x, y in zip(a["nll"], b["nll"])]
    return {**a, axis: bits, "nll": nll}


def quality(run: dict[str, Any]) -> float:
    """Perplexity of a language model, accuracy of a classifier."""
    nll, predictions = Tensor(run["nll"]).double(), Tensor(run["predictions"]).double()
    if run["language"]:
        return float((nll.sum() / predictions.sum()).exp())
    return float(Tensor(run["correct"]).double().sum() / predictions.sum())


def training_data(bench: Bench, model: str) -> Path:
    """What `model` is calibrated on: never what it is measured on."""
    measured = bench.data_for(model).relative_to(bench.data)
    return bench.data / TRAINING[str(measured)]


def spelt(interval: dict[str, Any]) -> str:
    """An interval for a table."""
    return f"[{interval['low']:+.4f}, {interval['high']:+.4f}]"


def _losses(bench: Bench, model: str, loaded: nn.Module) -> dict[str, Any]:
    nn.Module.float(loaded)
    batches, language = _batches(bench, model, loaded)
    losses = measure_losses(loaded, batches)
    return {
        "nll": losses.nll.tolist(),
        "predictions": losses.predictions.tolist(),
        "correct": losses.correct.tolist(),
        "language": language,
    }


def _batches(bench: Bench, model: str, loaded: nn.Module) -> tuple[list[Batch], bool]:
    """What `evaluate` measures on, and whether it is text."""
    subject = Subject(loaded, Path(model) if Path(model).is_dir() else None)
    kind = "text" if subject.takes == "text" else "labelled"
    limit = QUICK[kind] if bench.slice == "quick" else None
    data = read_inputs(bench.data_for(model), subject, limit)
    if isinstance(data, Labelled):
        return labelled_batches(data.first(limit) if limit else data, BATCH), False
    return language_batches(data[:limit], BATCH), True


def _pruned(module: nn.Module) -> list[Tensor]:
    """Every masked matrix of a model, dense."""
    held = [
        v for m in module.modules() if isinstance(m, CompressedModule) for v in m.values.values()
    ]
    parts = [part for value in held for part in _parts(value)]
    return [part.dense() for part in parts if isinstance(part, Masked)]


def _parts(value: CompressedTensor) -> tuple[CompressedTensor, ...]:
    return value.parts if isinstance(value, Stacked) else (value,)
