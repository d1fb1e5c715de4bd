"""Round to nearest on every model of the zoo: the same after a reload, in any batch, and what it costs."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import laconic
from benchmarks.bench import Bench
from laconic.evaluate import evaluate
from laconic.models.safetensors import find_shards
from laconic.quantize.rtn import RTN

BITS = (8, 4, 3)
BATCHES = (1, 8, 32)
LLAMA_TINY_PERPLEXITY = 43.16  # MEASURE.md: dense, text/valid.txt, full slice


def prove(bench: Bench) -> None:
    rows = []
    for name, model in bench.models().items():
        dense = bench.cached(f"dense {name}", lambda model=model: _dense(bench, model))
        bench.check(
            f"{name}: against itself 0 flips and KL 0",
            dense["flips"] == 0 and dense["kl"] == 0,
            flips=dense["flips"],
            kl=dense["kl"],
        )
        if name == "llama-tiny" and bench.slice == "full":
            bench.check(
                "llama-tiny: dense perplexity 43.16",
                abs(dense["quality"] - LLAMA_TINY_PERPLEXITY) < 0.005,
                perplexity=dense["quality"],
            )
        excess = {}
        for bits in BITS:
            for range_ in ("minmax", "mse"):
                method = RTN(bits=bits, range=range_)
                run = bench.cached(f"{method} {name}", lambda m=model, r=method: _run(bench, m, r))
                excess[bits, range_] = run
                rows.append(
                    [
                        name,
                        f"int{bits} g64 {range_}",
                        run["bits"],
                        run["resident_bits"],
                        run["kept"],
                        run["quality"],
                        run["excess"],
                        f"[{run['ci95'][0]:+.4f}, {run['ci95'][1]:+.4f}]",
                        run["flips"],
                        run["seconds"],
                    ]
                )
                if range_ == "mse":
                    _check_run(bench, name, bits, run)
        bench.check(
            f"{name}: excess loss grows from 8 to 4 to 3 bits (mse ranges)",
            excess[8, "mse"]["excess"] < excess[4, "mse"]["excess"] < excess[3, "mse"]["excess"],
            **{f"int{b}": excess[b, "mse"]["excess"] for b in BITS},
        )
        bench.check(
            f"{name}: 3 bits: mse ranges lose less than the extremes, in weights",
            excess[3, "mse"]["error"] < excess[3, "minmax"]["error"],
            mse=excess[3, "mse"]["error"],
            minmax=excess[3, "minmax"]["error"],
        )
    bench.table("RTN, groups of 64; excess loss against the dense model", [
        "model", "format", "stored bits", "resident bits", "kept", "quality", "excess nats", "95 %", "flips", "s",
    ], rows)  # fmt: skip


def _check_run(bench: Bench, name: str, bits: int, run: dict[str, Any]) -> None:
    bench.check(
        f"{name}: int{bits} reload is bit-equal and saves again byte for byte",
        run["reload_equal"] and run["resave_equal"],
        reload=run["reload_equal"],
        resave=run["resave_equal"],
    )
    values = list(run["by_batch"].values())
    bench.check(
        f"{name}: int{bits} evaluates the same in batches of 1, 8 and 32",
        all(value == values[0] for value in values),
        **{f"batch{b}": v for b, v in run["by_batch"].items()},
    )


def _dense(bench: Bench, model: str) -> dict[str, Any]:
    report = evaluate(model, bench.data_for(model), against=model, slice=bench.slice)
    return {
        "quality": report.perplexity or report.accuracy,
        "flips": report.against["flips"],
        "kl": report.against["kl_per_token"],
    }


def _run(bench: Bench, model: str, method: RTN) -> dict[str, Any]:
    """Compresses, reloads, saves again and measures; the batch sizes on the quick slice."""
    data = bench.data_for(model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        report = laconic.compress(model, method, out=out).report
        loaded = laconic.load(out)
        in_memory = laconic.compress(laconic.load(model), method).model
        measured = evaluate(out, data, against=model, slice=bench.slice)
        by_batch = {
            batch: _loss(evaluate(out, data, slice="quick", batch=batch)) for batch in BATCHES
        }
        return {
            "bits": report.bits_per_weight,
            "resident_bits": report.resident_bits_per_weight,
            "kept": report.kept,
            "error": sum(x["error"] * x["weights"] for x in report.layers)
            / sum(x["weights"] for x in report.layers),
            "seconds": report.seconds,
            "quality": _loss(measured),
            "excess": measured.against["excess_log_perplexity"],
            "ci95": measured.against["ci95"],
            "flips": measured.against["flips"],
            "by_batch": by_batch,
            "reload_equal": _same_logits(loaded, in_memory),
            "resave_equal": _saves_same(loaded, out, Path(folder) / "again"),
        }


def _loss(report: Any) -> float:
    return report.perplexity if report.perplexity is not None else report.accuracy


@torch.inference_mode()
def _same_logits(first: nn.Module, second: nn.Module) -> bool:
    config = getattr(first, "config", None)
    generator = torch.Generator().manual_seed(0)
    if config is None or hasattr(config, "image_size"):
        inputs = torch.randn(4, 3, 32, 32, generator=generator)
    else:
        inputs = torch.randint(config.vocab_size, (4, 64), generator=generator)
    outputs = [model(inputs) for model in (first, second)]
    logits = [getattr(output, "logits", output) for output in outputs]
    return torch.equal(*logits)


def _saves_same(model: nn.Module, out: Path, again: Path) -> bool:
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(again)
    else:
        from safetensors.torch import save_file

        again.mkdir()
        save_file(dict(model.state_dict()), again / "model.safetensors", metadata={"format": "pt"})
    return [p.read_bytes() for p in find_shards(out)] == [
        p.read_bytes() for p in find_shards(again)
    ]
