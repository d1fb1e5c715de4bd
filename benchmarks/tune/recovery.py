"""What training gives back to a pruned model, and that the loop under it can be trusted.

`MODELS` lose half of every row by magnitude and are trained for `STEPS` steps on the first windows of
text/train.txt; losses are compared on the quick slice (first 100 windows of text/valid.txt) whatever the
slice is: the full one only trains longer. All of it runs on one thread: six minutes, or twenty-five.
"""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from benchmarks.bench import Bench
from laconic.calibrate.data import read_text, windows
from laconic.loading import load
from laconic.measure.losses import language_batches, measure_losses
from laconic.measure.paired import paired
from laconic.numerics.golden import golden_section
from laconic.numerics.parallel import one_thread
from laconic.progress import SILENT
from laconic.tune.adapters import add_lora, find_targets, merge_lora
from laconic.tune.batches import Shuffled
from laconic.tune.distillation import Distillation
from laconic.tune.estimators import fake_quantize, lsq_quantize, lsq_scale
from laconic.tune.gates import HardConcrete
from laconic.tune.loop import Loss, train
from laconic.tune.lora import dense_weight
from laconic.tune.schedules import linear
from laconic.tune.state import Callback, History, TrainState
from laconic.tune.subsets import train_only

MODELS = ("llama-tiny", "gpt2-tiny")  # one of them with Conv1D
STEPS = {"quick": 40, "full": 160}  # of the optimiser, by slice
BATCH = 4  # windows
RATES = {"distilled": 1e-3, "cross entropy": 2e-4}  # of AdamW
WARMUP = 0.1
RANK, ALPHA = 16, 32.0
SPARSITY = 0.5  # of each row
QUICK = 100  # windows of text/valid.txt
BEGINNING = 4 << 20  # characters of text/train.txt that windows are taken from
RESUME = (8, 5)  # steps of the interrupted run, and where it is interrupted


def prove(bench: Bench) -> None:
    names = [name for name in MODELS if name in bench.language_models()]
    if not names:
        names = list(bench.language_models())[:2]
    steps = STEPS[bench.slice]
    bench.note(f"models: {', '.join(names)}; {steps} steps of {BATCH} windows on one thread")
    rows = []
    for name in names:
        model = bench.language_models()[name]
        found = bench.cached(f"recovery {name}", lambda m=model: _recovery(bench, m))
        rows += _recovered(bench, name, found)
    columns = ["model", "trained", "parameters", "excess nats", "low", "high", "KL", "came back"]
    bench.table(
        f"half of every row pruned by magnitude, then {steps} steps of {BATCH} windows",
        columns,
        rows,
    )
    model = bench.language_models()[names[-1]]
    found = bench.cached("resume", lambda: _resume(bench, model))
    bench.check(
        f"{names[-1]}: a run interrupted at step {RESUME[1]} of {RESUME[0]} ends with the same bits",
        found["parameters"] and found["history"], **found,
    )  # fmt: skip
    _estimators(bench)


def _recovered(bench: Bench, name: str, found: dict[str, Any]) -> list[list[Any]]:
    """Checks and table rows of one model."""
    pruned, distilled, plain = (found[label] for label in ("pruned", *RATES))
    came_back = {label: 1 - run["excess"] / pruned["excess"] for label, run in found.items()}
    bench.check(
        f"{name}: masked LoRA and norms, distilled, bring back at least half of what pruning lost",
        came_back["distilled"] >= 0.5, pruned=pruned["excess"], recovered=distilled["excess"],
    )  # fmt: skip
    bench.check(
        f"{name}: distillation lowers the KL to the dense model to less than half",
        distilled["kl"] < 0.5 * pruned["kl"], before=pruned["kl"], after=distilled["kl"],
    )  # fmt: skip
    bench.check(
        f"{name}: as many steps on the text itself bring back less than distillation does",
        distilled["high"] < plain["low"],
        distilled=distilled["excess"], cross_entropy=plain["excess"],
    )  # fmt: skip
    bench.check(
        f"{name}: after merging, every pruned weight is exactly zero",
        all(found[label]["zeros"] for label in RATES),
    )
    worst = max(found[label]["merge"] for label in RATES)
    bench.check(f"{name}: merged and unmerged logits agree", worst < 1e-5, relative=worst)
    return [
        [name, label, run["parameters"], run["excess"], run["low"], run["high"], run["kl"], came_back[label]]
        for label, run in found.items()
    ]  # fmt: skip


def _recovery(bench: Bench, path: str) -> dict[str, dict[str, Any]]:
    """What each way of training leaves, by its name."""
    data, valid = _windows(bench, path)
    dense = load(path, dtype=torch.float32)
    losses: dict[str, Loss] = {"distilled": Distillation(dense), "cross entropy": _cross_entropy}
    with one_thread():
        pruned = copy.deepcopy(dense)
        masks = _prune(pruned)
        runs = {"pruned": {"parameters": 0, **_measured(pruned, dense, valid)}}
        for label, rate in RATES.items():
            model = copy.deepcopy(pruned)
            add_lora(model, rank=RANK, alpha=ALPHA, kind="masked", masks=masks)
            count = sum(p.numel() for p in train_only(model, "lora", "norm"))
            _train(model, data, losses[label], rate, steps=STEPS[bench.slice])
            merged = _merged(model, masks, valid)
            runs[label] = {"parameters": count, **merged, **_measured(model, dense, valid)}
    return runs


def _merged(model: nn.Module, masks: dict[str, Tensor], valid: Tensor) -> dict[str, Any]:
    """Merges, and says what changed by that."""
    with torch.no_grad():
        before = model(input_ids=valid[:2]).logits
        merge_lora(model)
        after = model(input_ids=valid[:2]).logits
    weights = {path: dense_weight(model.get_submodule(path)) for path in masks}
    zeros = all(bool((w[~masks[path]] == 0).all()) for path, w in weights.items())
    return {"merge": ((after - before).abs().max() / before.abs().max()).item(), "zeros": zeros}


def _prune(model: nn.Module) -> dict[str, Tensor]:
    """Sets the smallest half of each row to zero; returns what is kept, (out, in) by path."""
    masks = {}
    for path in find_targets(model):
        module = model.get_submodule(path)
        weight = dense_weight(module)
        lost = weight.abs().argsort(dim=1, stable=True)[:, : int(SPARSITY * weight.shape[1])]
        masks[path] = torch.ones_like(weight, dtype=torch.bool).scatter_(1, lost, False)
        dense_weight(module).mul_(masks[path])  # in place: fp32 weights are seen, not copied
    return masks


def _train(
    model: nn.Module, data: Tensor, loss: Loss, rate: float, *, steps: int, **settings: Any
) -> History:
    optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)
    return train(
        model, Shuffled({"input_ids": data}, BATCH), loss,
        optimizer=optimizer, steps=steps, schedule=partial(linear, warmup=WARMUP), clip=1.0,
        precision="fp32", progress=SILENT, **settings,
    )  # fmt: skip


def _cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _measured(model: nn.Module, dense: nn.Module, valid: Tensor) -> dict[str, float]:
    summary = paired(measure_losses(model.eval(), language_batches(valid, 1), reference=dense))
    low, high = summary.ci95
    return {
        "excess": summary.excess_log_perplexity,
        "low": low,
        "high": high,
        "kl": summary.kl_per_token,
    }


def _windows(bench: Bench, path: str) -> tuple[Tensor, Tensor]:
    """Windows to train on, and the first ones of the validation text."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    context = load(path).config.max_position_embeddings
    text = read_text(bench.data / "text/train.txt")[:BEGINNING]
    data = windows(text, tokenizer, context, STEPS[bench.slice] * BATCH)
    valid = windows(read_text(bench.data / "text/valid.txt"), tokenizer, context, QUICK)
    return data, valid


class _Interrupt(Callback):
    def before_step(self, state: TrainState) -> None:
        if state.step == RESUME[1]:
            raise KeyboardInterrupt


def _resume(bench: Bench, path: str) -> dict[str, bool]:
    """Whether an interrupted and resumed run is the uninterrupted one, dropout and all."""
    data, _ = _windows(bench, path)

    def model() -> nn.Module:
        fresh = load(path, dtype=torch.float32)
        add_lora(fresh, rank=RANK, dropout=0.1)
        return fresh

    with one_thread(), tempfile.TemporaryDirectory() as folder:
        whole, first, second = model(), model(), model()
        go = partial(_train, data=data, loss=_cross_entropy, rate=1e-3, steps=RESUME[0])
        expected = go(whole)
        file = Path(folder) / "run.lac"
        try:
            go(first, checkpoint=file, checkpoint_every=2, callbacks=[_Interrupt()])
        except KeyboardInterrupt:
            found = go(second, checkpoint=file, checkpoint_every=2)
    pairs = zip(whole.parameters(), second.parameters())
    return {"parameters": all(torch.equal(a, b) for a, b in pairs), "history": found == expected}


def _estimators(bench: Bench) -> None:
    """Learned steps against a search for them, gates against their formula."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, generator=draw)
    worst = 0.0
    for bits in (2, 3, 4):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale = lsq_scale(x, high, dim=1).requires_grad_()
        adam = torch.optim.Adam([scale], lr=1e-3)
        for _ in range(1000):
            adam.zero_grad()
            (lsq_quantize(x, scale, low, high) - x).square().mean().backward()  # type: ignore[no-untyped-call]
            adam.step()

        def error(step: Tensor, low: int = low, high: int = high) -> Tensor:
            return (fake_quantize(x, step, 0, low, high) - x).square().mean(1, keepdim=True)

        best = golden_section(error, 0.01, 2.0, (64, 1), grid=65, steps=20)
        worst = max(worst, (error(scale.detach()).mean() / error(best).mean()).item() - 1)
    bench.check(
        "LSQ's gradient finds steps of 2, 3 and 4 bits within 3 % of the error of a search",
        worst < 0.03, worse_by=worst,
    )  # fmt: skip
    gap = 0.0
    for keep in (0.1, 0.5, 0.9):
        gates = HardConcrete(200_000, keep=keep)
        share = (gates.sample(draw) > 0).float().mean()
        gap = max(gap, abs(share.item() - gates.open().mean().item()))
    bench.check("hard-concrete gates are open as often as their formula says", gap < 0.005, gap=gap)
