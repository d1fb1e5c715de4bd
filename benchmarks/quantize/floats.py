"""Floats of 4 bits with shared scales: to the nearest and with error feedback, weights alone and with inputs.

Models are calibrated on the first 128 windows (images) of training data and measured on validation data.
`A < B` holds where the 95 % interval of the paired difference of their losses is below 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.paired import COMPARED, compare
from laconic.method import Method
from laconic.quantize.activations import Activations
from laconic.quantize.floats import Floats, GPTQFloats
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.quantize.wush import WUSH

FORMATS = {"mxfp4": (32, Activations(4, "mxfp")), "nvfp4": (16, Activations(4, "nvfp"))}
CHAINS: Mapping[str, Sequence[Method]] = {
    **{f"{name} nearest": [Floats(name)] for name in FORMATS},
    **{f"{name} swept": [GPTQFloats(name)] for name in FORMATS},
    "int4 g32 nearest": [RTN(4, 32)],
    "int4 g32 swept": [GPTQ(4, 32)],
    **{f"{name} W4A4 nearest": [Floats(name), inputs] for name, (_, inputs) in FORMATS.items()},
    **{f"{name} W4A4 swept": [GPTQFloats(name), inputs] for name, (_, inputs) in FORMATS.items()},
    **{
        f"{name} W4A4 wush swept": [WUSH(block), GPTQFloats(name), inputs]
        for name, (block, inputs) in FORMATS.items()
    },
    **{
        f"{name} W4A4 hadamard swept": [Hadamard(block=block), GPTQFloats(name), inputs]
        for name, (block, inputs) in FORMATS.items()
    },
}
CLAIMS = (
    *((f"{name}{inputs} swept", f"{name}{inputs} nearest") for name in FORMATS for inputs in ("", " W4A4")),
    *((f"{name} W4A4 wush swept", f"{name} W4A4 hadamard swept") for name in FORMATS),
    *((f"{name} W4A4 wush swept", f"{name} W4A4 swept") for name in FORMATS),
)  # fmt: skip


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    for name, model in bench.models().items():
        if not name.startswith("resnet"):
            rows += compare(bench, name, model, CHAINS, CLAIMS)
    bench.table("whole models; resident bits count scales", COMPARED, rows)
