"""Entropy coding at rest: what integer codes take in a file against the same codes packed."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from laconic.models.open import open_source
from laconic.tensors import IntQuantizer
from laconic.tensors.stored import decode, encode

FORMATS = [
    IntQuantizer(bits, group, True, range_)
    for bits in (2, 3, 4, 8)
    for group in ("row", 64)
    for range_ in ("minmax", "mse")
]


def prove(bench: Bench) -> None:
    rows = []
    for name, model in bench.models().items():
        saved = {}
        equal = True
        for quantizer in FORMATS:
            run = bench.cached(f"{quantizer} {name}", lambda m=model, q=quantizer: _run(m, q))
            label = _label(quantizer)
            saved[label] = 1 - run["stored"] / run["packed"]
            equal &= run["equal"]
            packed, stored = (8 * run[key] / run["weights"] for key in ("packed", "stored"))
            rows.append([name, label, packed, stored, f"{100 * saved[label]:.1f} %"])
        least = min(saved, key=lambda label: saved[label])
        bench.check(f"{name}: all {len(FORMATS)} formats decode to the same values", equal)
        bench.check(
            f"{name}: every format is smaller coded than packed, headers included",
            saved[least] > 0,
            least=saved[least],
            format=least,
        )
        if name == "llama-tiny":
            bench.check(
                "llama-tiny: absmax int4 per row at least 18 % smaller than packed",
                saved["int4 row minmax"] >= 0.18,
                saved=saved["int4 row minmax"],
            )
            bench.note(
                f"llama-tiny: int4 per row with MSE ranges is {100 * saved['int4 row mse']:.1f} % "
                "smaller coded than packed"
            )
    columns = ["model", "format", "packed", "stored", "saved"]
    bench.table("block weights, bits a weight, scales and headers included", columns, rows)


def _label(quantizer: IntQuantizer) -> str:
    group = quantizer.group if quantizer.group == "row" else f"g{quantizer.group}"
    return f"int{quantizer.bits} {group} {quantizer.range}"


def _run(model: str, quantizer: IntQuantizer) -> dict[str, Any]:
    source = open_source(Path(model) if "@" not in model else model)
    total = {"stored": 0, "packed": 0, "weights": 0, "equal": True}
    for block in source.blocks:
        tensors = source.read({layer.parameter for layer in block.layers})
        for layer in block.layers:
            value = quantizer.quantize(layer.take(tensors))
            blob = encode(value)
            total["stored"] += len(blob)
            total["packed"] += value.resident_bytes
            total["weights"] += value.numel
            total["equal"] &= torch.equal(decode(blob).dense(), value.dense())
    return total
