"""Products of one input with packed weights on a GPU, beside torch's with the same weight in bf16.

Codes are drawn at random: neither speed nor exactness depends on what they say. Every format is timed as a
captured graph that goes through as many copies of the weight as overflow the cache, and so is torch.
Without a GPU there is nothing to measure, and the proof says so.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench import Bench
from laconic.tensors import Additive, Codebook, CompressedTensor, Dense, Grouped
from laconic.tensors.patches import Patches

SHAPES = {"quick": [(4096, 4096)], "full": [(4096, 4096), (14336, 4096), (4096, 14336)]}
INPUTS = (1, 2, 4)
OUTSIDE_CACHE = 256 << 20  # bytes of the copies of a weight together
REPLAYS = 20
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8}  # of |x| |W|

Make = Callable[[int, int, torch.Generator], CompressedTensor]


def grouped(bits: int, group: int, symmetric: bool) -> Make:
    def make(rows: int, columns: int, generator: torch.Generator) -> CompressedTensor:
        codes = _random(2**bits, (rows, columns), generator)
        groups = (rows, -(-columns // group))
        zero = None if symmetric else _random(2**bits, groups, generator)
        return Grouped.from_codes(
            codes, _positive(groups, generator), zero, bits=bits, group=group, dtype=torch.bfloat16
        )

    return make


def codebook(bits: int, dim: int, per_group: tuple[int, int] | None, scales: int = 0) -> Make:
    def make(rows: int, columns: int, generator: torch.Generator) -> CompressedTensor:
        shape = torch.Size((rows, columns))
        down, across = per_group or (rows, columns)
        grid = Patches.of(shape, dim, down, across).grid
        entries = _normal((grid[0] * grid[1], 2**bits, dim), generator)
        codes = _random(2**bits, (rows, columns // dim), generator)
        scale = _positive((rows, columns // scales), generator).bfloat16() if scales else None
        whole = (entries * 30).round().clamp(-127, 127).to(torch.int8)
        step = _positive((len(entries),), generator).bfloat16()
        return Codebook.from_codes(
            codes, whole, shape=shape, dtype=torch.bfloat16, rows_per_group=down,
            columns_per_group=across, entry_scale=step,
            scale=None if scale is None else Dense(scale), scale_block=scales,
        )  # fmt: skip

    return make


def additive(count: int, bits: int, length: int) -> Make:
    def make(rows: int, columns: int, generator: torch.Generator) -> CompressedTensor:
        codes = _random(2**bits, (rows, columns // length, count), generator)
        tables = _normal((count, 2**bits, length), generator).bfloat16()
        return Additive.from_codes(
            codes, tables, _positive((rows,), generator).bfloat16(),
            shape=torch.Size((rows, columns)), dtype=torch.bfloat16,
        )  # fmt: skip

    return make


FORMATS: dict[str, Make] = {
    "int4 g128": grouped(4, 128, True),
    "int4 g64 asymmetric": grouped(4, 64, False),
    "int3 g128": grouped(3, 128, True),
    "int2 g64": grouped(2, 64, True),
    "int8 row": grouped(8, 1 << 20, True),
    "codebook 4 bit d1": codebook(4, 1, (16, 256)),
    "codebook 2 bit d2": codebook(4, 2, (16, 256)),
    "codebook 2 bit d4": codebook(8, 4, (512, 256)),
    "codebook 2 bit d4, scales g64": codebook(8, 4, (512, 256), 64),
    "additive 1x8 g4": additive(1, 8, 4),
    "additive 2x8 g8": additive(2, 8, 8),
    "additive 1x16 g8": additive(1, 16, 8),
}
FASTER = (
    "int4 g128",
    "codebook 2 bit d2",
    "codebook 2 bit d4",
    "additive 1x8 g4",
    "additive 2x8 g8",
)


def prove(bench: Bench) -> None:
    if not torch.cuda.is_available():
        bench.note("no GPU here: products on a GPU are not measured")
        return
    card = torch.cuda.get_device_name()
    rows = []
    for shape in SHAPES[bench.slice]:
        run = bench.cached(f"{card} {shape}", lambda s=shape: _measure(s))
        for label, found in run["formats"].items():
            bench.check(
                f"{shape[0]} x {shape[1]}, {label}: products of 1 to {INPUTS[-1]} inputs are those of float64 "
                "within rounding, and come from the kernel",
                found["off"] <= 1 and found["kernel"], off=found["off"],
            )  # fmt: skip
            ratios = [t / o for t, o in zip(run["torch"], found["microseconds"])]
            if label in FASTER:
                bench.check(
                    f"{shape[0]} x {shape[1]}, {label}: faster than torch in bf16 at one input",
                    ratios[0] > 1, ratio=ratios[0],
                )  # fmt: skip
            rows.append([f"{shape[0]} x {shape[1]}", label, found["bits"], found["microseconds"][0],
                         run["torch"][0], *ratios, found["rate"], found["decoding"]])  # fmt: skip
    bench.table(
        f"products on an {card}: microseconds at one input; times faster than torch in bf16 at 1, 2 and 4 inputs; "
        "GB/s of codes read; microseconds of decoding first",
        ["shape", "format", "bits", "ours", "torch", *(f"ratio {n}" for n in INPUTS), "GB/s",
         "decoding"],
        rows,
    )  # fmt: skip


def _measure(shape: tuple[int, int]) -> dict[str, Any]:
    weight = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    xs = {n: torch.randn(n, shape[1], device="cuda", dtype=torch.bfloat16) for n in INPUTS}
    copies = [weight.clone() for _ in range(_copies(weight.nbytes))]
    ours = [[lambda w=w, n=n: F.linear(xs[n], w) for w in copies] for n in INPUTS]
    found: dict[str, Any] = {"torch": [microseconds(calls) for calls in ours], "formats": {}}
    for label, make in FORMATS.items():
        found["formats"][label] = _measure_format(make, shape, xs)
    return found


def _measure_format(make: Make, shape: tuple[int, int], xs: dict[int, Tensor]) -> dict[str, Any]:
    value = make(*shape, torch.Generator("cuda").manual_seed(0))
    bytes_ = value.resident_bytes
    copies = [_copy(value) for _ in range(_copies(bytes_))]
    times = [microseconds([lambda v=v, n=n: v.matmul(xs[n]) for v in copies]) for n in INPUTS]
    decoding = microseconds([lambda: F.linear(xs[1], value.dense(torch.bfloat16))])
    product = value._product(xs[1], None)  # type: ignore[attr-defined]
    return {
        "kernel": product is not None,
        "off": max(_off(value, n, dtype) / TOLERANCE[dtype] for n in INPUTS for dtype in TOLERANCE),
        "microseconds": times,
        "bits": 8 * bytes_ / value.numel,
        "rate": bytes_ / times[0] / 1e3,
        "decoding": decoding,
    }


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Of one call, the median over replays of a graph of all."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [call() for call in calls]
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    del kept
    return 1e3 * statistics.median(times) / len(calls)


def _off(value: CompressedTensor, inputs: int, dtype: torch.dtype) -> float:
    """The greatest difference to the product in float64, in units of |x| |W|."""
    x = torch.randn(inputs, value.shape[1], device="cuda", dtype=dtype)
    bias = torch.randn(value.shape[0], device="cuda", dtype=dtype)
    weight = value.dense(torch.float32).double()
    off = (value.matmul(x, bias).double() - F.linear(x.double(), weight, bias.double())).abs()
    return float((off / F.linear(x.double().abs(), weight.abs(), bias.double().abs())).max())


def _copy(value: CompressedTensor) -> CompressedTensor:
    return value.replace_tensors({name: t.clone() for name, t in value.tensors().items()})


def _copies(size: int) -> int:
    return max(2, min(64, -(-OUTSIDE_CACHE // size)))


def _random(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(count, shape, generator=generator, device="cuda", dtype=torch.int32)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cuda")


def _positive(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 0.01 + torch.rand(shape, generator=generator, device="cuda")
