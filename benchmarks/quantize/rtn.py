"""Round to nearest on every model of the zoo: the same after a reload, in any batch, and what it costs."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import laconic
from benchmarks.bench import Bench
from laconic.calibrate.data import (
    Labelled,
    image_statistics,
    read_images,
    read_sentences,
    read_text,
    windows,
)
from laconic.evaluate import evaluate
from laconic.models.safetensors import find_shards
from laconic.quantize.rtn import RTN

BITS = (8, 4, 3)
BATCHES = (1, 8, 32)
FEW = {"language": 32, "classification": 128}  # windows, examples on which batch sizes are compared
LLAMA_TINY_PERPLEXITY = 43.16  # MEASURE.md: dense, text/valid.txt, full slice


def prove(bench: Bench) -> None:
    rows = []
    for name, model in bench.models().items():
        dense = bench.cached(f"dense {name}", lambda model=model: _dense(bench, model))
        _check_dense(bench, name, dense)
        runs = {}
        for bits in BITS:
            runs[bits] = bench.cached(
                f"int{bits} {name}", lambda m=model, b=bits: _run(bench, m, RTN(bits=b))
            )
            _check_run(bench, name, bits, runs[bits])
            rows.append(_row(name, f"int{bits} g64", runs[bits]))
        excess = {f"int{bits}": runs[bits]["excess"] for bits in BITS}
        bench.check(
            f"{name}: excess loss grows from 8 to 4 to 3 bits",
            runs[8]["excess"] < runs[4]["excess"] < runs[3]["excess"],
            **excess,
        )
        errors = bench.cached(f"ranges {name}", lambda model=model: _weight_errors(model))
        bench.check(
            f"{name}: int3 g64 loses less weight energy with mse ranges than with the extremes",
            errors["mse"] < errors["minmax"],
            **errors,
        )
    columns = [
        "model",
        "format",
        "stored bits",
        "resident bits",
        "kept",
        "quality",
        "excess nats",
        "95 %",
        "flips",
        "s",
    ]
    bench.table(
        "RTN, mse ranges; excess loss against the dense model; s: to compress", columns, rows
    )


def _check_dense(bench: Bench, name: str, dense: dict[str, Any]) -> None:
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


def _check_run(bench: Bench, name: str, bits: int, run: dict[str, Any]) -> None:
    bench.check(
        f"{name}: int{bits} reload is bit-equal and saves again byte for byte",
        run["reload_equal"] and run["resave_equal"],
        reload=run["reload_equal"],
        resave=run["resave_equal"],
    )
    values = run["by_batch"]
    bench.check(
        f"{name}: int{bits} evaluates the same in batches of 1, 8 and 32",
        all(value == values["1"] for value in values.values()),
        **{f"batch{batch}": value for batch, value in values.items()},
    )


def _row(name: str, label: str, run: dict[str, Any]) -> list[Any]:
    low, high = run["ci95"]
    return [
        name,
        label,
        run["bits"],
        run["resident_bits"],
        run["kept"],
        run["quality"],
        run["excess"],
        f"[{low:+.4f}, {high:+.4f}]",
        run["flips"],
        run["seconds"],
    ]


def _dense(bench: Bench, model: str) -> dict[str, Any]:
    """The dense model on all data, and against itself on a part."""
    data = bench.data_for(model)
    quality = _quality(evaluate(model, data, slice=bench.slice))
    against = evaluate(model, data, against=model, slice="quick").against
    return {"quality": quality, "flips": against["flips"], "kl": against["kl_per_token"]}


def _run(bench: Bench, model: str, method: RTN) -> dict[str, Any]:
    """Compresses, reloads, saves again and measures."""
    data = bench.data_for(model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        report = laconic.compress(model, method, out=out).report
        loaded = laconic.load(out)
        in_memory = laconic.compress(laconic.load(model), method).model
        measured = evaluate(out, data, against=model, slice=bench.slice)
        equal = _same_logits(loaded, in_memory)
        again = _saves_same(loaded, out, Path(folder) / "again")
        few = _few(model, loaded, data)
        by_batch = {str(batch): evaluate(loaded, few, batch=batch).loss for batch in BATCHES}
        return {
            "bits": report.bits_per_weight,
            "resident_bits": report.resident_bits_per_weight,
            "kept": report.kept,
            "seconds": report.seconds,
            "quality": _quality(measured),
            "excess": measured.against["excess_log_perplexity"],
            "ci95": measured.against["ci95"],
            "flips": measured.against["flips"],
            "by_batch": by_batch,
            "reload_equal": equal,
            "resave_equal": again,
        }


def _weight_errors(model: str) -> dict[str, float]:
    """Lost weight energy of int3 g64 over all layers, by how ranges are found."""
    errors = {}
    for range_ in ("mse", "minmax"):
        with tempfile.TemporaryDirectory() as folder:
            layers = laconic.compress(
                model, RTN(bits=3, range=range_), out=Path(folder) / "o"
            ).report.layers
        weights = sum(layer["weights"] for layer in layers)
        errors[range_] = sum(layer["error"] * layer["weights"] for layer in layers) / weights
    return errors


def _few(model: str, loaded: nn.Module, data: Path) -> Any:
    """The first windows or examples of `data`, as `evaluate` takes them for a module."""
    from transformers import AutoTokenizer

    config = getattr(loaded, "config", None)
    if config is None or hasattr(config, "image_size"):
        size = getattr(config, "image_size", 32)
        return read_images(data, size, *image_statistics(None, size), FEW["classification"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    if "Sequence" in type(loaded).__name__:
        sentences: Labelled = read_sentences(data, tokenizer)
        return sentences.first(FEW["classification"])
    return windows(read_text(data), tokenizer, config.max_position_embeddings)[: FEW["language"]]


def _quality(report: Any) -> float:
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
