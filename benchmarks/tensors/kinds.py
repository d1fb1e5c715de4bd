"""Every kind of compressed weight on real layers: exact bytes, products, and errors at like sizes.

A few whole layers of each model stand for all, evenly spread over its blocks. Errors are squared, of
weights, and need no data: they order formats, not methods.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench import Bench
from laconic.coding.framing import Compact
from laconic.models.open import open_source
from laconic.models.shards import write_file
from laconic.numerics.kmeans import kmeans
from laconic.numerics.svd import truncated_svd
from laconic.tensors import (
    Additive,
    BinaryQuantizer,
    Bitmask,
    CodebookQuantizer,
    CompressedTensor,
    Dense,
    FloatQuantizer,
    Hadamard,
    IntQuantizer,
    LowRank,
    Masked,
    MaskedCodes,
    NofM,
    ShiftQuantizer,
    Stacked,
    Sum,
    Transformed,
)
from laconic.tensors.compressed import registered_kinds
from laconic.tensors.stored import HEADER, decode, encode

LAYERS = {"quick": 2, "full": 6}  # of each model
RANK = 16
ENTRIES, DIM, STAGES = 256, 4, 2  # of additive codebooks
POINTS_PER_ENTRY = 64  # that additive codebooks are found from
INPUTS = (1, 2, 48)  # at a time: few ones are multiplied without decoding
TOLERANCE = 1e-5  # of |x| |W|, in fp32

INT4_ROW, INT4 = IntQuantizer(4, "row", True, "mse"), IntQuantizer(4, 64, True, "mse")


def additive(weight: Tensor) -> Additive:
    """Vectors of 4 columns as sums of 2 of 256 centroids each: k-means, and k-means of the rest."""
    rows = weight.reshape(len(weight), -1).float()
    scale = rows.square().mean(dim=1).sqrt().bfloat16().clamp(min=torch.finfo(torch.bfloat16).tiny)
    padded = F.pad(rows / scale.float()[:, None], (0, -rows.shape[1] % DIM))
    rest = padded.reshape(1, -1, DIM)
    codebooks, codes = [], []
    for _ in range(STAGES):
        step = -(-rest.shape[1] // (POINTS_PER_ENTRY * ENTRIES))
        count = min(ENTRIES, rest[:, ::step].shape[1])
        found = kmeans(rest[:, ::step], count, iterations=15).centroids.bfloat16().float()
        chosen = kmeans(rest, count, init=found, iterations=0).assignment[0]
        rest = rest - found[:, chosen]
        codebooks.append(F.pad(found[0], (0, 0, 0, ENTRIES - count)).bfloat16())
        codes.append(chosen.reshape(len(rows), -1))
    return Additive.from_codes(
        torch.stack(codes, dim=2), torch.stack(codebooks), scale,
        shape=weight.shape, dtype=weight.dtype,
    )  # fmt: skip


def two_of_four(weight: Tensor) -> NofM:
    """Keeps the two greatest of every four neighbours."""
    rows = weight.reshape(len(weight), -1).abs()
    runs = F.pad(rows, (0, -rows.shape[1] % 4), value=-1.0).reshape(len(rows), -1, 4)
    keep = torch.zeros_like(runs, dtype=torch.bool).scatter_(2, runs.topk(2).indices, True)
    return NofM.of(keep.flatten(1)[:, : rows.shape[1]].reshape(weight.shape), 2, 4)


def half(weight: Tensor) -> Bitmask:
    """Keeps the greater half of all."""
    keep = torch.zeros(weight.numel(), dtype=torch.bool)
    keep[weight.flatten().float().abs().topk(weight.numel() // 2).indices] = True
    return Bitmask.of(keep.reshape(weight.shape))


def low_rank(weight: Tensor) -> LowRank:
    """The product of rank 16 or less with the least squared error, in the model's dtype."""
    rows = weight.reshape(len(weight), -1).float()
    found = truncated_svd(rows, min(RANK, *rows.shape))
    root = found.values.sqrt()
    left, right = found.left * root, (found.right * root).T
    return LowRank(
        Dense(left.to(weight.dtype)), Dense(right.contiguous().to(weight.dtype)),
        tuple(weight.shape[2:]),
    )  # fmt: skip


def corrected(weight: Tensor) -> Sum:
    """int4 and a product of rank 16 for what it lacks."""
    coarse = INT4.quantize(weight)
    rest = (weight.float() - coarse.dense(torch.float32)).bfloat16()
    return Sum((coarse, low_rank(rest)))


def rotated(weight: Tensor) -> Transformed:
    """int4 behind a random Hadamard transform of the input channels."""
    transform = Hadamard.random(weight.shape[1], seed=0)
    return Transformed(INT4.quantize(transform.fold(weight.float()).to(weight.dtype)), transform)


def stacked(weight: Tensor) -> Stacked:
    """int4 in two slices of half of the rows."""
    return Stacked(tuple(INT4.quantize(part) for part in weight.chunk(2)))


FORMATS: dict[str, Callable[[Tensor], CompressedTensor]] = {
    "dense": Dense,
    "fp8 e4m3 row": FloatQuantizer("e4m3").quantize,
    "int4 row": INT4_ROW.quantize,
    "int4 g64": INT4.quantize,
    "mxfp4": FloatQuantizer("mxfp4").quantize,
    "nvfp4": FloatQuantizer("nvfp4").quantize,
    "codebook 4 bit d1": CodebookQuantizer(4, 1).quantize,
    "codebook 4 bit d2": CodebookQuantizer(4, 2).quantize,
    "codebook 4 bit d2, scales g64": CodebookQuantizer(4, 2, scale_block=64).quantize,
    "additive 2x8 g4": additive,
    "shift blocks, 4 bits": ShiftQuantizer(4, middle=True).quantize,
    "binary 3 planes": BinaryQuantizer(3).quantize,
    "binary 4 planes": BinaryQuantizer(4).quantize,
    "2:4 of int4 g64": lambda w: MaskedCodes.of(INT4.quantize(w), two_of_four(w)),
    "50 % of int4 g64": lambda w: MaskedCodes.of(INT4.quantize(w), half(w)),
    "int4 g64 of kept 50 %": lambda w: Masked.of(w, half(w), INT4.quantize),
    "rank 16": low_rank,
    "int4 g64 + rank 16": corrected,
    "int4 g64 behind Hadamard": rotated,
    "int4 g64, two slices": stacked,
}
#: Starts and rivals that only claims need.
OTHERS: dict[str, Callable[[Tensor], CompressedTensor]] = {
    "binary 3 planes, greedy": BinaryQuantizer(3, iterations=0).quantize,
    "binary 4 planes, greedy": BinaryQuantizer(4, iterations=0).quantize,
    "mxfp4 mse": FloatQuantizer("mxfp4", range="mse").quantize,
    "nvfp4 mse": FloatQuantizer("nvfp4", range="mse").quantize,
}


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    rows = []
    for name, model in bench.models().items():
        run = bench.cached(name, lambda m=model: _run(m, LAYERS[bench.slice]))
        _check_bytes(bench, name, run["formats"])
        _check_errors(bench, name, run["formats"])
        bench.note(f"{name}: {run['layers']} of {run['of']} layers, {run['weights']} weights")
        for label in FORMATS:
            entry = run["formats"][label]
            bits = [8 * entry[key] / run["weights"] for key in ("resident", "stored")]
            rows.append([name, label, *bits, entry["error"]])
    columns = ["model", "format", "resident bits", "stored bits", "error"]
    bench.table(
        "bits a weight, all side information included; squared error / squared weights",
        columns, rows,
    )  # fmt: skip


def _check_bytes(bench: Bench, name: str, formats: dict[str, Any]) -> None:
    shown = [formats[label] for label in FORMATS]
    tensors = {
        kind for kind, cls in registered_kinds().items() if issubclass(cls, CompressedTensor)
    }
    bench.check(
        f"{name}: every kind of tensor is measured, in {len(FORMATS)} formats",
        {entry["kind"] for entry in shown} == tensors, kinds=len(tensors),
    )  # fmt: skip
    bench.check(
        f"{name}: stored bytes are those of the blobs in a file, resident bytes those of the memory "
        "that loaded tensors hold, and the values come back",
        all(entry["file"] and entry["loaded"] and entry["equal"] for entry in formats.values()),
        file=sum(entry["file"] for entry in formats.values()),
        loaded=sum(entry["loaded"] for entry in formats.values()), formats=len(formats),
    )  # fmt: skip
    worst = max(shown, key=lambda entry: entry["off"])
    bench.check(
        f"{name}: products are those of the dense weight within {TOLERANCE:g} |x| |W|",
        worst["off"] <= TOLERANCE, worst=worst["off"], format=worst["label"],
    )  # fmt: skip
    ratios = {e["label"]: (e["stored"] - e["header"]) / e["resident"] for e in shown}
    largest = max(ratios, key=lambda label: ratios[label])
    bench.check(
        f"{name}: no format takes more in a file than in memory, its header aside",
        ratios[largest] <= 1, largest=ratios[largest], format=largest,
        header=max(e["header"] / e["tensors"] for e in shown),
    )  # fmt: skip


def _check_errors(bench: Bench, name: str, formats: dict[str, Any]) -> None:
    for less, more in [
        ("nvfp4", "mxfp4"),
        ("mxfp4 mse", "mxfp4"),
        ("nvfp4 mse", "nvfp4"),
        ("codebook 4 bit d2", "codebook 4 bit d1"),
        ("binary 4 planes", "binary 3 planes"),
        ("int4 g64", "int4 row"),
        ("int4 g64 + rank 16", "int4 g64"),
        ("50 % of int4 g64", "2:4 of int4 g64"),
    ]:
        ours, theirs = formats[less], formats[more]
        bench.check(
            f"{name}: {less} loses less than {more}",
            ours["error"] < theirs["error"], ours=ours["error"], theirs=theirs["error"],
        )  # fmt: skip
    for label in ("binary 3 planes", "binary 4 planes"):
        layers = zip(formats[label]["errors"], formats[f"{label}, greedy"]["errors"])
        ratios = [ours / theirs for ours, theirs in layers]
        bench.check(
            f"{name}: {label} refined lose no more than their greedy start on any layer",
            max(ratios) <= 1, worst=max(ratios), best=min(ratios),
        )  # fmt: skip
    _check_codebooks(bench, name, formats)


def _check_codebooks(bench: Bench, name: str, formats: dict[str, Any]) -> None:
    """Pairs of weights against grids, on the layers where the codebook costs no more than scales."""
    ours = formats["codebook 4 bit d2"]
    for rival in ("int4 row", "int4 g64"):
        theirs = formats[rival]
        sizes = enumerate(zip(ours["residents"], theirs["residents"]))
        paid = [i for i, (mine, other) in sizes if mine <= other]
        if not paid:
            bench.note(f"{name}: a codebook of pairs takes more memory than {rival} on every layer")
            continue
        ratios = [ours["errors"][i] / theirs["errors"][i] for i in paid]
        bench.check(
            f"{name}: codebook 4 bit d2 loses less than {rival} on every layer where it takes no more "
            "memory",
            max(ratios) < 1, worst=max(ratios), layers=len(paid),
        )  # fmt: skip


def _run(model: str, count: int) -> dict[str, Any]:
    weights, total = _weights(model, count)
    return {
        "layers": len(weights),
        "of": total,
        "weights": sum(weight.numel() for weight in weights),
        "formats": {
            label: _measure(label, make, weights) for label, make in (FORMATS | OTHERS).items()
        },
    }


def _weights(model: str, count: int) -> tuple[list[Tensor], int]:
    """`count` layers, evenly spread over the blocks, and how many there are."""
    source = open_source(model)
    layers = [layer for block in source.blocks for layer in block.layers]
    count = min(count, len(layers))
    chosen = [layers[round(i * (len(layers) - 1) / max(1, count - 1))] for i in range(count)]
    tensors = source.read({layer.parameter for layer in chosen})
    return [layer.take(tensors) for layer in chosen], len(layers)


def _measure(
    label: str, make: Callable[[Tensor], CompressedTensor], weights: list[Tensor]
) -> dict[str, Any]:
    values = [make(weight) for weight in weights]
    blobs = [encode(value) for value in values]
    back, in_file = _through_a_file(blobs)
    errors = [_lost(weight, value) for weight, value in zip(weights, values)]
    whole = sum(float(weight.double().square().sum()) for weight in weights)
    return {
        "label": label,
        "kind": values[0].kind,
        "tensors": len(values),
        "stored": sum(value.stored_bytes for value in values),
        "resident": sum(value.resident_bytes for value in values),
        "residents": [value.resident_bytes for value in values],
        "header": sum(_header(blob) for blob in blobs),
        "file": in_file == sum(value.stored_bytes for value in values),
        "loaded": all(a.resident_bytes == _held(b) for a, b in zip(values, back)),
        "equal": all(torch.equal(a.dense(), b.dense()) for a, b in zip(values, back)),
        "off": max(_off(value) for value in values),
        "error": sum(lost for lost, _ in errors) / whole,
        "errors": [lost / size for lost, size in errors],
    }


def _through_a_file(blobs: list[bytes]) -> tuple[list[CompressedTensor], int]:
    """The tensors read back from a safetensors file of the blobs, and its bytes behind its header."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        named = {
            str(i): torch.frombuffer(bytearray(b), dtype=torch.uint8) for i, b in enumerate(blobs)
        }
        write_file(path, named)
        size = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
        with safe_open(path, "pt") as file:
            return [decode(file.get_tensor(name).numpy()) for name in named], size


def _held(value: CompressedTensor) -> int:
    """Bytes of the memory behind the tensors of `value`, each counted once."""
    storages = [tensor.untyped_storage() for tensor in value.tensors().values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _header(blob: bytes) -> int:
    """Bytes of a blob that are not of its arrays."""
    sections = Compact.from_bytes(blob).sections
    return len(blob) - sum(len(s.payload) for s in sections if s.type != HEADER)


def _lost(weight: Tensor, value: CompressedTensor) -> tuple[float, float]:
    """Squared error and squared weights."""
    whole = weight.double()
    off = whole - value.dense(torch.float32).double().reshape(whole.shape)
    return float(off.square().sum()), float(whole.square().sum())


def _off(value: CompressedTensor) -> float:
    """The greatest difference to the product with the dense weight, in units of |x| |W|."""
    if len(value.shape) != 2:
        return 0.0  # kernels of convolutions and stacks of slices are multiplied dense
    generator = torch.Generator().manual_seed(0)
    weight, worst = value.dense(torch.float32), 0.0
    for count in INPUTS:
        x = torch.randn(count, value.shape[1], generator=generator)
        off = (value.matmul(x) - F.linear(x, weight)).abs()
        worst = max(worst, float((off / F.linear(x.abs(), weight.abs()).clamp(min=1e-12)).max()))
    return worst
