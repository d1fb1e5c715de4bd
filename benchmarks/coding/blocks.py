"""Lossless coders on bf16 weights beside zipnn and zstandard: ratio and speed in one run.

Sheet 023, steps 5 to 8 and "Proof at our scale" 2 to 4; one thread.
"""

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from benchmarks.bench import Bench
from laconic.coding import blocks, planes
from laconic.coding.tables import entropy_bits, histogram
from laconic.models.safetensors import find_shards, read_headers, read_tensor
from laconic.tensors.dtypes import to_raw

MEGABYTES = {"quick": 16, "full": 64}
ROUNDS = {"quick": 5, "full": 9}


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    zipnn = _zipnn()
    if zipnn is None:
        bench.note(
            "zipnn 0.5.4 is not installed (pip install zipnn==0.5.4): nothing to compare with"
        )
    gaussian = _gaussian(MEGABYTES[bench.slice] << 20)
    rows = [_measure(bench, f"N(0, 0.02), {len(gaussian) >> 20} MiB", gaussian, zipnn)]
    for name, model in bench.models().items():
        raw = _bf16_weights(Path(model.partition("@")[2] or model))
        if raw.size:
            rows.append(_measure(bench, name, raw, zipnn, speed=False))
    columns = ["bf16 weights", "coder", "ratio", "compress MB/s", "decompress MB/s"]
    bench.table("one thread, medians of alternating runs", columns, [r for rs in rows for r in rs])
    _check_clean(bench)


def _measure(
    bench: Bench, name: str, raw: np.ndarray, zipnn: Any, speed: bool = True
) -> list[list[Any]]:
    coders: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "huffman": (lambda: blocks.compress(raw, "BF16"), blocks.decompress),
        "rans": (lambda: blocks.compress(raw, "BF16", engine="rans"), blocks.decompress),
        "zstd-3": (
            lambda: zstandard.ZstdCompressor(level=3).compress(raw.data),
            lambda blob: zstandard.ZstdDecompressor().decompress(blob),
        ),
    }
    if zipnn is not None:
        # zipnn shuffles the bits of its input in place: every run gets a fresh copy, made beforehand
        coders["zipnn"] = (lambda: zipnn.compress(copies.pop()), zipnn.decompress)
    rounds = ROUNDS[bench.slice] if speed else 1
    copies = [bytearray(raw.tobytes()) for _ in range(rounds + 1)]
    ratios, compress_s, decompress_s = _alternate(coders, raw, rounds)
    if zipnn is not None:
        bench.check(
            f"{name}: huffman ratio >= 0.999x zipnn's",
            ratios["huffman"] >= 0.999 * ratios["zipnn"],
            ours=ratios["huffman"],
            zipnn=ratios["zipnn"],
        )
        bench.check(
            f"{name}: rans ratio >= 1.004x zipnn's",
            ratios["rans"] >= 1.004 * ratios["zipnn"],
            ours=ratios["rans"],
            zipnn=ratios["zipnn"],
            times=ratios["rans"] / ratios["zipnn"],
        )
    bench.check(
        f"{name}: both engines beat zstd-3",
        min(ratios["huffman"], ratios["rans"]) > ratios["zstd-3"],
        huffman=ratios["huffman"],
        rans=ratios["rans"],
        zstd=ratios["zstd-3"],
    )
    limit = _entropy_limit(raw)
    bench.check(
        f"{name}: rans within 0.5 % of the order-0 limit of its byte planes",
        ratios["rans"] >= 0.995 * limit,
        ours=ratios["rans"],
        limit=limit,
    )
    if speed and zipnn is not None:
        faster = _median_ratio(compress_s["zipnn"], compress_s["huffman"])
        bench.check(
            f"{name}: huffman compresses >= 1.0x as fast as zipnn", faster >= 1.0, times=faster
        )
        faster = _median_ratio(decompress_s["zipnn"], decompress_s["huffman"])
        bench.check(
            f"{name}: huffman decompresses >= 0.9x as fast as zipnn", faster >= 0.9, times=faster
        )
    if not speed:
        return [[name, coder, ratio, "", ""] for coder, ratio in ratios.items()]
    rate = lambda times: round(raw.size / statistics.median(times) / 1e6)  # noqa: E731
    return [[name, c, ratios[c], rate(compress_s[c]), rate(decompress_s[c])] for c in coders]


def _alternate(
    coders: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]], raw: np.ndarray, rounds: int
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, list[float]]]:
    """Ratios and seconds; every coder once to warm up, then `rounds` times in turn."""
    ratios: dict[str, float] = {}
    compress_s: dict[str, list[float]] = {name: [] for name in coders}
    decompress_s: dict[str, list[float]] = {name: [] for name in coders}
    for number in range(rounds + 1):
        for name, (pack, unpack) in coders.items():
            started = time.perf_counter()
            blob = pack()
            middle = time.perf_counter()
            plain = unpack(blob)
            ended = time.perf_counter()
            if number == 0:
                ratios[name] = raw.size / len(blob)
                restored = (
                    np.frombuffer(plain, np.uint8)
                    if isinstance(plain, bytes | bytearray)
                    else plain
                )
                if name != "zipnn" and not np.array_equal(restored, raw):
                    raise AssertionError(f"{name} does not restore its input")
            else:
                compress_s[name].append(middle - started)
                decompress_s[name].append(ended - middle)
    return ratios, compress_s, decompress_s


def _median_ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(t / o for t, o in zip(theirs, ours))


def _check_clean(bench: Bench) -> None:
    """fp32 made from bf16: the two zero bytes must vanish."""
    clean = _gaussian(8 << 20).view(np.uint16).astype(np.uint32) << 16
    for engine in blocks.ENGINES:
        ratio = clean.nbytes / blocks.compress(clean, "F32", engine=engine).size
        bench.check(f"fp32 copy of bf16 weights, {engine}: ratio >= 2.9", ratio >= 2.9, ratio=ratio)


def _gaussian(size: int) -> np.ndarray:
    """`size` bytes of bf16 N(0, 0.02)."""
    weights = torch.randn(size // 2, generator=torch.Generator().manual_seed(0)) * 0.02
    return to_raw(weights.to(torch.bfloat16)).copy()


def _bf16_weights(folder: Path) -> np.ndarray:
    """All bf16 tensors of a model, one after the other."""
    entries = read_headers(find_shards(folder)).values()
    parts = [to_raw(read_tensor(entry)) for entry in entries if entry.dtype == "BF16"]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _entropy_limit(raw: np.ndarray) -> float:
    layout = planes.layout_of("BF16")
    parts = planes.split(raw.view(np.uint16), layout)
    bits = sum(min(8.0 * part.size, entropy_bits(histogram(part))) for part in parts)
    return raw.size * 8 / max(bits, math.ulp(1.0))


def _zipnn() -> Any:
    """zipnn's compressor for bf16, one thread; None where it is not installed.

    It is tried in another process first: with some inputs zipnn 0.5.4 crashes.
    """
    probe = "import zipnn; z = zipnn.ZipNN(bytearray_dtype='bfloat16', threads=1); z.compress(bytearray(1 << 20))"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode:
        return None
    import zipnn

    return zipnn.ZipNN(bytearray_dtype="bfloat16", threads=1)
