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
        for quantizer in FORMATS:
            run = bench.cached(f"{quantizer} {name}", lambda m=model, q=quantizer: _run(m, q))
            saved = 1 - run["stored"] / run["packed"]
            label = f"int{quantizer.bits} {'g' if quantizer.group != 'row' else ''}{quantizer.group} {quantizer.range}"
            rows.append(
                [
                    name,
                    label,
                    8 * run["packed"] / run["weights"],
                    8 * run["stored"] / run["weights"],
                    f"{100 * saved:.1f} %",
                    run["equal"],
                ]
            )
            bench.check(
                f"{name}: {label} decodes to the same values and is not larger than packed",
                run["equal"] and saved > -0.02,
                saved=saved,
            )
            if name == "llama-tiny" and label == "int4 row minmax":
                bench.check(
                    "llama-tiny: absmax int4 per row at least 18 % smaller than packed",
                    saved >= 0.18,
                    saved=saved,
                )
            if name == "llama-tiny" and label == "int4 row mse":
                bench.note(
                    f"llama-tiny: int4 per row with MSE ranges is {100 * saved:.1f} % smaller than packed"
                )
    bench.table(
        "block weights, bits a weight, scales and headers included",
        ["model", "format", "packed", "stored", "saved", "equal"],
        rows,
    )


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
