"""What methods cost as layers grow, on weights and inputs drawn at random: up to 4096 x 4096 on a GPU.

The models at hand are narrow, so the layers are made: weights of Gaussian rows with a few columns that
stand out, inputs whose spectrum falls as a power law, mixed by a rotation. That orders methods as real
layers of language models do, and says nothing of perplexity.
"""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.layers import output_error
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, SecondMoment
from laconic.measure.resources import peak_rss_bytes
from laconic.method import LayerMethod
from laconic.models.layout import Layer
from laconic.quantize.aqlm import AQLM
from laconic.quantize.gptq import GPTQ
from laconic.quantize.gptvq import GPTVQ
from laconic.quantize.obc import OBQ
from laconic.quantize.rtn import RTN

GROUP = 128
WIDTHS = {"quick": (256, 512), "full": (256, 512, 1024)}
ON_A_GPU = {"quick": (1024, 2048), "full": (1024, 2048, 4096)}
DECAY = 0.7  # of the spectrum of inputs, as a power of the rank
STANDING_OUT = 0.02  # share of the columns of weights that are
FACTOR = 4  # times wider than the others

METHODS: dict[str, LayerMethod] = {
    "rtn 3 bits": RTN(bits=3, group=GROUP),
    "gptq 3 bits": GPTQ(bits=3, group=GROUP),
    "obq 3 bits": OBQ(bits=3, group=GROUP),
    "rtn 2 bits": RTN(bits=2, group=GROUP),
    "gptq 2 bits": GPTQ(bits=2, group=GROUP),
    "obq 2 bits": OBQ(bits=2, group=GROUP),
    "gptvq 2 bits d2": GPTVQ(bits=2, dim=2),
    "gptvq 2 bits d4": GPTVQ(bits=2, dim=4),
    "aqlm 1x8 g4": AQLM(codebooks=1, bits=8, length=4, rounds=4),
    "aqlm 2x8 g8": AQLM(codebooks=2, bits=8, length=8, rounds=4),
}


def prove(bench: Bench) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    widths = (ON_A_GPU if device == "cuda" else WIDTHS)[bench.slice]
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rows, found = [], {}
    for label, width in itertools.product(METHODS, widths):
        key = f"{label} {width} {name} {torch.get_num_threads()}"
        run = bench.cached(key, lambda m=METHODS[label], w=width: measure(m, w, device))
        found[label, width] = run
        before = found.get((label, width // 2))
        grown = math.log2(run["seconds"] / before["seconds"]) if before else "-"
        rows.append([label, width, run["seconds"], grown, run["memory"] / 2**20, run["bits"],
                     run["error"]])  # fmt: skip
    for width in widths:
        for less, more in (
            ("obq 3 bits", "gptq 3 bits"), ("gptq 3 bits", "rtn 3 bits"),
            ("obq 2 bits", "gptq 2 bits"), ("gptq 2 bits", "rtn 2 bits"),
            ("gptvq 2 bits d2", "gptq 2 bits"), ("gptvq 2 bits d4", "gptvq 2 bits d2"),
            ("aqlm 2x8 g8", "gptq 2 bits"),
        ):  # fmt: skip
            ours, theirs = (found[label, width]["error"] for label in (less, more))
            bench.check(
                f"{width} columns: {less} loses less than {more}", ours < theirs, ours=ours,
                theirs=theirs,
            )  # fmt: skip
    bench.table(
        f"layers of n x n on {name}: seconds, the power of n by which they grew since n / 2, MiB above the "
        "weight, resident bits, squared output error / squared output",
        ["method", "n", "seconds", "grows as n^", "MiB", "bits", "error"], rows,
    )  # fmt: skip


def measure(method: LayerMethod, width: int, device: str) -> dict[str, Any]:
    """Seconds, bytes, bits and error of `method` on a layer of `width` by `width`."""
    weight, moment = layer(width, device)
    stats = statistics_of(weight, moment)
    method.compress_weight(*_small(device))  # compiles what it needs
    before = _begin(device)
    started = time.perf_counter()
    value = method.compress_weight(weight, stats)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "memory": _peak(device) - before,
        "bits": 8 * value.resident_bytes / value.numel,
        "error": output_error(weight, value.dense(torch.float32), moment),
    }


def _begin(device: str) -> int:
    """Bytes in use, from where `_peak` counts on."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's way to reset VmHWM
    return _peak(device)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss_bytes()


def _small(device: str) -> tuple[Tensor, LayerStats]:
    weight, moment = layer(256, device)
    return weight[:32], statistics_of(weight[:32], moment)


def statistics_of(weight: Tensor, moment: Tensor) -> LayerStats:
    """Those of a layer whose inputs have this second moment."""
    wants = SecondMoment()
    seen = Collected(wants, 1, {"moment": moment})
    return LayerStats(Layer("made", "made", "weight", weight.shape, "linear"), {wants: seen})


def layer(width: int, device: str) -> tuple[Tensor, Tensor]:
    """A weight (width, width) float32 and the second moment of its inputs, float64."""
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(width, width, generator=generator) / width**0.5
    chosen = torch.randperm(width, generator=generator)[: max(1, int(STANDING_OUT * width))]
    weight[:, chosen] *= FACTOR
    mix = torch.randn(width, width, generator=generator).to(device)
    rotation = torch.linalg.qr(mix.double()).Q
    spectrum = torch.arange(1, width + 1, dtype=torch.float64, device=device) ** -DECAY
    return weight.to(device), rotation * spectrum @ rotation.mT
