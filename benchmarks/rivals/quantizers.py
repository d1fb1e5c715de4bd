"""GPTQ beside llm-compressor's: the same model, windows and grid; quality, bytes, seconds, memory.

The rival runs in an environment of its own under .cache/rivals, which is made when it is missing; where
that is not possible the proof says so and checks nothing. Both run on two threads, one after the other.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import ROOT, Bench
from benchmarks.paired import difference, losses, quality, spelt
from laconic.calibrate.data import read_text, windows

MODELS = ("llama-tiny", "opt-tiny")
BITS, GROUP, WINDOWS = (
    (4, 3),
    64,
    160,
)  # both are fitted to the first 128; ours measures on the rest
BEGINNING = 1 << 21  # characters of text/train.txt that windows are taken from
ENVIRONMENTS = ROOT / ".cache" / "rivals"
OURS = """
import json, sys, time, torch
torch.set_num_threads(2)
import laconic
from laconic.calibrate.calibration import read_calibration
from laconic.measure.resources import peak_rss_bytes
from laconic.quantize.gptq import GPTQ
ids = torch.load(sys.argv[2], weights_only=True)
start = time.perf_counter()
laconic.compress(sys.argv[1], GPTQ(int(sys.argv[3]), int(sys.argv[4])), ids, out=sys.argv[5] + "/dense",
                 windows=128)
seconds = time.perf_counter() - start
from pathlib import Path
stored = sum(f.stat().st_size for f in Path(sys.argv[5], "dense").glob("*.safetensors"))
Path(sys.argv[5], "report.json").write_text(json.dumps({"seconds": seconds, "peak": peak_rss_bytes(), "stored": stored}))
"""


def prove(bench: Bench) -> None:
    python = environment("llmcompressor")
    if python is None:
        bench.note("llm-compressor could not be installed here; nothing was compared")
        return
    rows: list[list[Any]] = []
    for name in [n for n in MODELS if n in bench.language_models()]:
        model = bench.language_models()[name]
        whole = bench.cached(f"dense {name}", lambda m=model: losses(bench, m, m))
        for bits in BITS:
            runs = bench.cached(
                f"int{bits} {name}", lambda m=model, b=bits: _both(bench, m, b, python)
            )
            _compare(bench, name, bits, runs, whole, rows)
    columns = [
        "model",
        "int",
        "by",
        "perplexity",
        "excess nats",
        "95 %",
        "stored MB",
        "s",
        "peak MB",
    ]
    bench.table("GPTQ in groups of 64, symmetric, 128 windows, two threads", columns, rows)


def _compare(
    bench: Bench, name: str, bits: int, runs: dict[str, Any], whole: dict[str, Any],
    rows: list[list[Any]],
) -> None:  # fmt: skip
    found = {label: difference(run, whole) for label, run in runs.items()}
    for label, run in runs.items():
        rows.append([
            name, bits, label, quality(run), found[label]["difference"], spelt(found[label]),
            run["stored"] / 1e6, run["seconds"], run["peak"] / 1e6,
        ])  # fmt: skip
    ours, theirs = runs["laconic"], runs["llm-compressor"]
    bench.check(
        f"{name} int{bits}: excess loss at most 1.1 times llm-compressor's",
        found["laconic"]["difference"] <= 1.1 * found["llm-compressor"]["difference"],
        ours=found["laconic"]["difference"], theirs=found["llm-compressor"]["difference"],
    )  # fmt: skip
    bench.check(
        f"{name} int{bits}: at least 5 times faster",
        5 * ours["seconds"] <= theirs["seconds"],
        ours=ours["seconds"], theirs=theirs["seconds"], ratio=theirs["seconds"] / ours["seconds"],
    )  # fmt: skip
    bench.check(
        f"{name} int{bits}: less memory", ours["peak"] < theirs["peak"],
        ours=ours["peak"], theirs=theirs["peak"],
    )  # fmt: skip
    bench.check(
        f"{name} int{bits}: a smaller file", ours["stored"] < theirs["stored"],
        ours=ours["stored"], theirs=theirs["stored"],
    )  # fmt: skip


def _both(bench: Bench, model: str, bits: int, python: Path) -> dict[str, Any]:
    """What each makes of the model, and at what cost."""
    scripts = {
        "laconic": [sys.executable, "-c", OURS],
        "llm-compressor": [str(python), str(Path(__file__).parent / "_llmcompressor.py")],
    }
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        ids = Path(name) / "windows.pt"
        torch.save(_windows(bench, model), ids)
        for label, command in scripts.items():
            out = Path(name) / label
            out.mkdir()
            arguments = [model, str(ids), str(bits), str(GROUP), str(out)]
            done = subprocess.run(
                [*command, *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{label} failed: {done.stderr[-2000:]}")
            report = json.loads((out / "report.json").read_text())
            runs[label] = {**losses(bench, model, str(out / "dense")), **report}
    return runs


def _windows(bench: Bench, model: str) -> torch.Tensor:
    from transformers import AutoConfig, AutoTokenizer

    context = AutoConfig.from_pretrained(model).max_position_embeddings
    text = read_text(bench.data / "text/train.txt")[:BEGINNING]
    return windows(text, AutoTokenizer.from_pretrained(model), context, WINDOWS).clone()


def environment(package: str) -> Path | None:
    """The Python of a virtual environment with `package`, made where it is missing; None if it cannot be."""
    folder = ENVIRONMENTS / package
    python = folder / "bin" / "python"
    try:
        if not (folder / "complete").is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            for wanted in (f"torch=={torch.__version__.split('+')[0]}", package):
                subprocess.run([str(python), "-m", "pip", "install", "-q", wanted], check=True)
            (folder / "complete").touch()
    except (OSError, subprocess.CalledProcessError):
        return None
    return python
