"""AlphaTuning: binary coding beside grids, and one base whose scales are tuned for two other kinds of text.

The base is a language model in binary coding, the tasks are film reviews (SST-2) and news (RTE). All that
is trained sees the same windows in the same order; rates are chosen on windows that are neither trained nor
reported on. Losses are nats per token of text that nothing has seen.
"""

import copy
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

import laconic
from benchmarks.bench import Bench
from benchmarks.tune._texts import task_texts
from laconic.calibrate.data import windows
from laconic.measure.losses import language_batches, measure_losses
from laconic.measure.speed import speed_ratio
from laconic.models.open import open_source
from laconic.numerics.parallel import one_thread
from laconic.progress import SILENT
from laconic.quantize.alphatuning import BCQ
from laconic.quantize.rtn import RTN
from laconic.tensors import BinaryQuantizer, IntQuantizer
from laconic.tensors.binary import Binary
from laconic.tensors.modules import CompressedModule
from laconic.tune.adapters import add_lora
from laconic.tune.alpha import add_scales, load_scales, save_scales, settle_scales
from laconic.tune.batches import Shuffled
from laconic.tune.loop import train
from laconic.tune.schedules import linear
from laconic.tune.subsets import train_only

MODELS = ("gpt2-tiny", "opt-tiny")
STEPS = {"quick": 60, "full": 300}
BATCH = 8  # windows
CHOSEN_ON = 24  # windows that rates are chosen on
BITS = (3, 4)
SCALES = {"quick": (5e-3, 1e-2), "full": (2e-3, 5e-3, 1e-2, 2e-2)}  # rates of AdamW that are tried
WEIGHTS = {"quick": (3e-4, 1e-3), "full": (1e-4, 3e-4, 1e-3)}
GAUSSIAN = {
    2: 0.118,
    3: 0.0372,
    4: 0.0118,
}  # squared error / variance of rows of 1024, from the sheet
INPUTS = (1, 2)  # of a product by look-ups

Prepare = Callable[[nn.Module], Sequence[nn.Parameter]]


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    _gaussian(bench)
    rows = []
    for name in [n for n in MODELS if n in bench.language_models()] or list(
        bench.language_models()
    )[:2]:
        model = bench.language_models()[name]
        _layers(bench, name, model)
        found = bench.cached(f"tasks {name}", lambda m=model: _tasks(bench, m))
        rows += _check_tasks(bench, name, found)
    columns = ["model", "task", "what is trained", "of", "rate", "numbers", "bytes a task", "loss"]
    bench.table(
        f"adapted to a task by {STEPS[bench.slice]} steps of {BATCH} windows; nats per token of unseen text",
        columns, rows,
    )  # fmt: skip


def _gaussian(bench: Bench) -> None:
    """Errors on normal rows beside the table of the sheet."""
    x = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    rows = []
    for bits, expected in GAUSSIAN.items():
        ours, greedy = (_rowwise(BinaryQuantizer(bits, iterations=n), x) for n in (15, 0))
        grids = [
            float(_rowwise(IntQuantizer(bits, "row", False, r), x).mean())
            for r in ("minmax", "mse")
        ]
        bench.check(
            f"Gaussian rows, {bits} planes: refined < greedy in every row",
            bool((ours < greedy).all()), worst=float((ours / greedy).max()),
        )  # fmt: skip
        bench.check(
            f"Gaussian rows, {bits} planes: no more than 3 % above the error of the sheet",
            float(ours.mean()) <= 1.03 * expected, ours=float(ours.mean()), sheet=expected,
        )  # fmt: skip
        rows.append([bits, float(ours.mean()), float(greedy.mean()), *grids])
    bench.table(
        "squared error / variance of Gaussian rows of 1024",
        ["bits", "binary", "greedy", "grid, extremes", "grid, mse"], rows,
    )  # fmt: skip


def _rowwise(quantizer: Any, x: Tensor) -> Tensor:
    return (quantizer.project(x) - x).square().mean(dim=1) / x.square().mean(dim=1)


def _layers(bench: Bench, name: str, model: str) -> None:
    """Binary coding beside grids on every layer; look-ups beside multiplications."""
    source = open_source(model)
    layers = [layer for block in source.blocks for layer in block.layers]
    tensors = source.read({layer.parameter for layer in layers})
    weights = [layer.take(tensors).flatten(1).float() for layer in layers]
    for label, grid in (
        ("spans the extremes", IntQuantizer(3, "row", False, "minmax")),
        ("is fitted", IntQuantizer(3, "row", False, "mse")),
    ):
        ratios = [
            float((BinaryQuantizer(3).project(w) - w).norm() / (grid.project(w) - w).norm()) ** 2
            for w in weights
        ]
        bench.check(
            f"{name}: 3 planes lose less than a grid of 3 bits per row that {label}, on every layer",
            max(ratios) < 1, worst=max(ratios), best=min(ratios),
        )  # fmt: skip
    worst, draw = 0.0, torch.Generator().manual_seed(0)
    for weight, inputs in itertools.product(weights, INPUTS):
        value, x = (
            BinaryQuantizer(3).quantize(weight),
            torch.randn(inputs, weight.shape[1], generator=draw),
        )
        dense = F.linear(x, value.dense(torch.float32))
        worst = max(worst, float((value.matmul(x) - dense).norm() / dense.norm()))
    bench.check(f"{name}: look-ups give the product within 1e-4", worst < 1e-4, worst=worst)
    value, x = BinaryQuantizer(3).quantize(weights[-1]), torch.randn(1, weights[-1].shape[1])
    faster = speed_ratio(lambda: value.matmul(x), lambda: F.linear(x, value.dense(torch.float32)))
    bench.note(
        f"{name}: looking up one input is {faster:.1f} times as fast as decoding and multiplying"
    )


def _tasks(bench: Bench, path: str) -> dict[str, Any]:
    """Losses of every way to adapt, by task."""
    dense = laconic.load(path, dtype=torch.float32)
    bases = {bits: laconic.compress(copy.deepcopy(dense), BCQ(bits)).model for bits in BITS}
    found: dict[str, Any] = {"tasks": {}, "weights": _weights(bases[BITS[0]])}
    found["base bytes"] = {bits: _resident(base) for bits, base in bases.items()}
    found["all"] = sum(p.numel() for p in dense.parameters())
    with tempfile.TemporaryDirectory() as folder:
        for task, texts in task_texts(bench.data).items():
            data = [_windows(text, path, limit) for text, limit in zip(texts, _limits(bench))]
            found["tasks"][task] = _adapted(bench, dense, bases, data, Path(folder) / task)
        found["swapped"] = _swapped(bench, path, bases[BITS[-1]], Path(folder))
    return found


def _limits(bench: Bench) -> tuple[int, int, int | None]:
    return STEPS[bench.slice] * BATCH, CHOSEN_ON, 100 if bench.slice == "quick" else None


def _adapted(
    bench: Bench, dense: nn.Module, bases: dict[int, nn.Module], data: list[Tensor], folder: Path
) -> dict[str, dict[str, Any]]:
    """What each way of adapting to one task leaves, by its name."""
    go = partial(_chosen, data=data, steps=STEPS[bench.slice])
    runs: dict[str, dict[str, Any]] = {"dense": {"loss": _loss(dense, data[2])}}
    rates = SCALES[bench.slice]
    whole, runs["whole"] = go(dense, _everything, WEIGHTS[bench.slice])
    for label, method in (
        *((f"whole, then bcq{bits}", BCQ(bits)) for bits in BITS),
        ("whole, then rtn3", RTN(3, "row", False)),
        ("whole, then rtn4", RTN(4, "row", False)),
    ):
        small = laconic.compress(copy.deepcopy(whole), method).model
        runs[label] = {"loss": _loss(small, data[2])}
    for bits, base in bases.items():
        before = _signs(base)
        runs[f"bcq{bits}"] = {"loss": _loss(base, data[2])}
        tuned, run = go(base, add_scales, rates)
        file = save_scales(tuned, folder / str(bits)) / "alpha.safetensors"
        runs[f"bcq{bits}, scales"] = {
            **run, "bytes": file.stat().st_size,
            "signs": all(torch.equal(a, b) for a, b in zip(before, _signs(settle_scales(tuned)))),
        }  # fmt: skip
    for label, prepare in (
        ("all scales", partial(add_scales, planes="all")), ("norms and biases", _norms), ("LoRA rank 1", _lora),
    ):  # fmt: skip
        _, runs[f"bcq{BITS[-1]}, {label}"] = go(bases[BITS[-1]], prepare, rates)
    return runs


def _chosen(
    model: nn.Module, prepare: Prepare, rates: Sequence[float], *, data: list[Tensor], steps: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The model after training at the rate that is best on the windows for choosing."""
    best: tuple[float, float, nn.Module, int] | None = None
    for rate in rates:
        tuned = copy.deepcopy(model)
        parameters = list(prepare(tuned))
        with one_thread():
            train(
                tuned, Shuffled({"input_ids": data[0]}, BATCH), _cross_entropy,
                optimizer=torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0), steps=steps,
                schedule=partial(linear, warmup=0.1), clip=1.0, precision="fp32", progress=SILENT,
            )  # fmt: skip
        loss = _loss(tuned, data[1])
        if best is None or loss < best[0]:
            best = loss, rate, tuned, sum(p.numel() for p in parameters)
    assert best is not None
    _, rate, tuned, count = best
    return tuned, {
        "loss": _loss(tuned, data[2]),
        "rate": rate,
        "parameters": count,
        "bytes": 2 * count,
    }


def _everything(model: nn.Module) -> list[nn.Parameter]:
    return train_only(model, "all")


def _norms(model: nn.Module) -> list[nn.Parameter]:
    return train_only(model, "norm", "bias")


def _lora(model: nn.Module) -> list[nn.Parameter]:
    add_lora(model, rank=1, alpha=1.0)
    return train_only(model, "lora")


def _swapped(bench: Bench, path: str, base: nn.Module, folder: Path) -> dict[str, float]:
    """Loss on each task with the scales of each, loaded one after the other into one model."""
    model, found = copy.deepcopy(base), {}
    texts = task_texts(bench.data)
    for owner, task in itertools.product(texts, texts):
        load_scales(model, folder / owner / str(BITS[-1]))
        found[f"{owner} on {task}"] = _loss(
            model, _windows(texts[task][2], path, _limits(bench)[2])
        )
    return found


def _check_tasks(bench: Bench, name: str, found: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for task, runs in found["tasks"].items():
        loss = {label: run["loss"] for label, run in runs.items()}
        few, many = BITS
        for less, more in (
            (f"bcq{many}, scales", f"bcq{many}"), (f"bcq{few}, scales", f"bcq{few}"),
            (f"bcq{many}, scales", "whole, then rtn3"),
            (f"bcq{many}, scales", f"bcq{many}, norms and biases"),
            (f"bcq{many}, scales", f"bcq{many}, LoRA rank 1"),
        ):  # fmt: skip
            bench.check(
                f"{name}, {task}: {less} < {more}", loss[less] < loss[more], ours=loss[less],
                theirs=loss[more],
            )  # fmt: skip
        after = loss[f"whole, then bcq{many}"]
        bench.check(
            f"{name}, {task}: bcq{many} with tuned scales within 5 % of the loss of bcq{many} of the model that "
            "was trained whole",
            loss[f"bcq{many}, scales"] <= 1.05 * after, ours=loss[f"bcq{many}, scales"], theirs=after,
        )  # fmt: skip
        run = runs[f"bcq{many}, scales"]
        bench.check(
            f"{name}, {task}: less than 1 % of the numbers are trained, and no sign changes",
            run["parameters"] < 0.01 * found["all"] and run["signs"],
            trained=run["parameters"], all=found["all"],
        )  # fmt: skip
        for label, run in runs.items():
            base, _, what = label.partition(", ")
            rows.append([name, task, what or "nothing", base, *(run.get(k, "-") for k in ("rate", "parameters", "bytes")), run["loss"]])  # fmt: skip
    swapped = found["swapped"]
    tasks = list(found["tasks"])
    own = all(
        swapped[f"{a} on {a}"] < min(swapped[f"{b} on {a}"] for b in tasks if b != a) for a in tasks
    )
    same = max(
        abs(swapped[f"{t} on {t}"] / found["tasks"][t][f"bcq{BITS[-1]}, scales"]["loss"] - 1)
        for t in tasks
    )
    bench.check(
        f"{name}: scales swapped into one base are as they were tuned, and each task's own are best",
        own and same < 1e-3, off=same, **swapped,
    )  # fmt: skip
    sizes = ", ".join(f"{bits} planes {size}" for bits, size in found["base bytes"].items())
    bench.note(
        f"{name}: {found['weights']} weights in binary coding take {sizes} bytes for all tasks"
    )
    return rows


def _windows(text: str, path: str, limit: int | None) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(path)
    context = laconic.load(path).config.max_position_embeddings
    return windows(text, tokenizer, context, limit)


def _loss(model: nn.Module, data: Tensor) -> float:
    """Mean nats per token."""
    return measure_losses(model.eval(), language_batches(data, 8)).mean


def _cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _binary(model: nn.Module) -> list[Binary]:
    values = [
        v for m in model.modules() if isinstance(m, CompressedModule) for v in m.values.values()
    ]
    return [value for value in values if isinstance(value, Binary)]


def _signs(model: nn.Module) -> list[Tensor]:
    return [value.planes for value in _binary(model)]


def _weights(model: nn.Module) -> int:
    return sum(value.numel for value in _binary(model))


def _resident(model: nn.Module) -> int:
    return sum(value.resident_bytes for value in _binary(model))
