"""A hub of models: fine-tunes beside BitX, families without hints, and 60 variants beside other ways to keep them.

Sheet 029, "Proof at our scale", and sheet 023, 2. Baselines: zstd of each file, zipnn of each file, and BitX: equal
files and tensors once, fine-tunes as the exclusive or with their base, exponents and the rest by zstd at level 3.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file

from benchmarks.bench import Bench
from benchmarks.coding.blocks import _zipnn
from benchmarks.store._variants import WEIGHTS, fine_tuned, hub, save, stored, tokens
from laconic.coding.blocks import compress
from laconic.coding.deltas import compress_delta
from laconic.store.store import Store
from laconic.tensors.dtypes import name_of, to_raw

STEPS = {"quick": 20, "full": 100}
BASES = {"quick": 1, "full": 3}  # of which a hub of 20 variants each is made
TIMES = {1e-6: 2.0, 1e-5: 1.5, 1e-4: 1.25}  # smaller than BitX, at a learning rate
TEXT = "text/train.txt"


def prove(bench: Bench) -> None:
    torch.set_num_threads(1)
    models = bench.language_models()
    rows = []
    for name, model in models.items():
        found = bench.cached(f"deltas {name}", lambda m=model: _deltas(bench, m))
        for rate, times in TIMES.items():
            bits = found[f"{rate:g}"]
            bench.check(
                f"{name}, fine-tuned at {rate:g}: smaller than BitX with zstd by {times} times",
                bits["bitx"] >= times * bits["ours"], **bits, times=bits["bitx"] / bits["ours"],
            )  # fmt: skip
            rows.append([name, f"{rate:g}", *bits.values()])
    bench.table(
        f"bits a weight of bf16 fine-tunes, {STEPS[bench.slice]} steps",
        ["model", "learning rate", "alone", "BitX", "ours"], rows,
    )  # fmt: skip
    _families(bench, models)
    _hub(bench, dict(list(models.items())[: BASES[bench.slice]]))


def _deltas(bench: Bench, model: str) -> dict[str, dict[str, float]]:
    """By learning rate, bits a weight: coded alone, by BitX, as ordered differences."""
    base = {n: t.to(torch.bfloat16) for n, t in load_file(Path(model) / WEIGHTS).items()}
    ids = tokens(model, bench.data / TEXT)
    found = {}
    for rate in TIMES:
        (weights,) = fine_tuned(model, ids, rate, [STEPS[bench.slice]])
        sizes = np.zeros(3)
        count = 0
        for name, tensor in weights.items():
            raw, before = to_raw(tensor), to_raw(base[name])
            dtype = name_of(tensor.dtype)
            sizes += (
                len(compress(raw, dtype)),
                _bitx(raw, before),
                len(compress_delta(raw, before, dtype)),
            )
            count += tensor.numel()
        alone, bitx, ours = (8 * sizes / count).tolist()
        found[f"{rate:g}"] = {"alone": alone, "bitx": bitx, "ours": ours}
    return found


def _bitx(raw: np.ndarray, base: np.ndarray) -> int:
    """Bytes of BitX (ZipLLM): exponents of the exclusive or, and signs with mantissas, by zstd at level 3."""
    words = raw.view("<u2") ^ base.view("<u2")
    exponents = (words >> 7 & 0xFF).astype(np.uint8)
    others = (words >> 15 << 7 | words & 0x7F).astype(np.uint8)
    return sum(len(zstandard.compress(part.tobytes(), 3)) for part in (exponents, others))


def _families(bench: Bench, models: dict[str, str]) -> None:
    """Two bases of one architecture from different seeds, and four fine-tunes, shuffled and without names."""
    model = min(models.values(), key=lambda m: (Path(m) / WEIGHTS).stat().st_size)
    found = bench.cached("families", lambda: _found_families(bench, model))
    right = sum(base == expected for base, expected in found)
    bench.check(
        "two bases and their fine-tunes: every family is found, and none that is not",
        right == len(found), right=right, of=len(found),
    )  # fmt: skip


def _found_families(bench: Bench, model: str) -> list[tuple[str | None, str | None]]:
    """(base that was found, base that it is of), for each model in the order in which they came."""
    ids = tokens(model, bench.data / TEXT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = stored(load_file(Path(model) / WEIGHTS))
        (other,) = fine_tuned(model, ids, 1e-3, [STEPS[bench.slice]], seed=5, fresh=True)
        bases = {"a": save(folder / "a", model, own), "b": save(folder / "b", model, other)}
        store = Store(folder / "store")
        answers: list[tuple[str | None, str | None]] = []
        for mark, path in bases.items():
            base = store.add(path, mark).model.base
            answers.append((base and base.partition("@")[0], None))
        for number, (mark, rate) in enumerate((("b", 1e-5), ("a", 1e-4), ("a", 1e-6), ("b", 1e-4))):
            (weights,) = fine_tuned(str(bases[mark]), ids, rate, [STEPS[bench.slice]], seed=number)
            path = save(folder / f"x{number}", model, weights)
            (path / "config.json").write_text("{}")
            base = store.add(path, f"x{number}").model.base
            answers.append((base and base.partition("@")[0], mark))
        return answers


def _hub(bench: Bench, models: dict[str, str]) -> None:
    found = bench.cached(f"hub of {', '.join(models)}", lambda: _kept(bench, models))
    sizes = found["sizes"]
    for other in ("zstd", "zipnn", "bitx"):
        if other in sizes:
            bench.check(
                f"{found['models']} variants: the store takes less than {other}",
                sizes["store"] < sizes[other], store=sizes["store"], other=sizes[other],
                times=sizes[other] / sizes["store"],
            )  # fmt: skip
    bench.check("every file of every variant comes back byte for byte", found["same"])
    steps = found["steps"]
    bench.check(
        "each step takes less than the one before",
        steps["raw"] > steps["files"] > steps["tensors"] > steps["stored"], **steps,
    )  # fmt: skip
    bench.table(
        "a hub of variants", ["kept as", "bytes", "share"],
        [[name, size, size / sizes["as files"]] for name, size in sizes.items()],
    )  # fmt: skip
    bench.note(
        f"the store took {found['in']:.1f} MB/s in and gave {found['out']:.1f} MB/s out, one thread beside other work"
    )


def _kept(bench: Bench, models: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            n: hub(m, n, bench.data / TEXT, folder / "models", STEPS[bench.slice])
            for n, m in models.items()
        }
        paths = [path for variants in made.values() for path in variants]
        files = [file for path in paths for file in sorted(path.rglob("*")) if file.is_file()]
        raw = sum(file.stat().st_size for file in files)
        store = Store(folder / "store")
        start = time.perf_counter()
        for path in paths:
            store.add(path)
        taken = time.perf_counter() - start
        start = time.perf_counter()
        same = all(_same(store, path) for path in paths)
        given = time.perf_counter() - start
        sizes = {"as files": raw, "zstd": sum(map(_zstd, files))}
        zipnn = _zipnn()
        if zipnn is not None:
            sizes["zipnn"] = sum(_zipnn_bytes(zipnn, file) for file in files)
        sizes["bitx"] = sum(_bitx_hub(variants) for variants in made.values())
        totals = store.index.totals()
        sizes["store"] = totals["packs"] + (folder / "store" / "index.sqlite").stat().st_size
        return {
            "models": len(paths), "same": same, "sizes": sizes, "in": raw / taken / 1e6,
            "out": raw / given / 1e6,
            "steps": {key: totals[key] for key in ("raw", "files", "tensors", "stored")},
        }  # fmt: skip


def _same(store: Store, path: Path) -> bool:
    model = store.open(path.name)
    return all(
        b"".join(c.tobytes() for c in model.chunks(name)) == (path / name).read_bytes()
        for name in model.files
    )


def _zstd(file: Path) -> int:
    return len(zstandard.compress(file.read_bytes(), 3))


def _zipnn_bytes(zipnn: Any, file: Path) -> int:
    """Weights by zipnn as bf16, other files by zstd."""
    if file.suffix != ".safetensors":
        return _zstd(file)
    data = file.read_bytes()
    return len(zipnn.compress(bytearray(data[: len(data) // 4 * 4]))) + len(data) % 4


def _bitx_hub(variants: list[Path]) -> int:
    """Bytes of ZipLLM: equal files and tensors once, BitX where the base has a tensor of the name and shape, zstd."""
    base = load_file(variants[0] / WEIGHTS)
    seen: set[str] = set()
    total = 0

    def once(data: bytes, size: Callable[[], int]) -> int:
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            return 0
        seen.add(digest)
        return size()

    for path in variants:
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix != ".safetensors":
                total += once(file.read_bytes(), lambda f=file: _zstd(f))
            elif file.is_file():
                for name, tensor in load_file(file).items():
                    raw = to_raw(tensor)
                    near = base.get(name)
                    paired = (
                        path != variants[0] and near is not None and near.shape == tensor.shape
                        and near.dtype == tensor.dtype == torch.bfloat16
                    )  # fmt: skip
                    total += once(
                        raw.tobytes(),
                        (lambda r=raw, b=near: _bitx(r, to_raw(b)))
                        if paired
                        else (lambda r=raw: len(zstandard.compress(r.tobytes(), 3))),
                    )
    return total
