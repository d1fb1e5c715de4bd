"""Quantizers of other packages: the same model, windows and grid; quality, bytes, seconds, memory.

Each rival runs in an environment of its own under .cache/rivals, made when it is missing; where that is
not possible the proof says so. All run on two threads, one after the other, in processes of their own.
AutoRound trains its rounding, as ours does with blocktune: it has the cells of one model. What is best of ours
is held against each rival among what takes no more memory, and among what takes no more bytes in files.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import ROOT, Bench
from benchmarks.paired import difference, losses, quality, spelt
from laconic.calibrate.data import read_text, windows


@dataclass(frozen=True)
class Rival:
    """A package: how it is installed, what calls it, and on which models at which widths."""

    package: str
    script: str
    cells: tuple[tuple[str, int], ...]
    build: dict[str, str] = field(default_factory=dict)  # environment variables of its installation
    run: dict[str, str] = field(default_factory=dict)  # and of its run


CELLS = tuple((model, bits) for model in ("llama-tiny", "opt-tiny") for bits in (4, 3, 2))
RIVALS = {
    "llm-compressor": Rival("llmcompressor", "_llmcompressor.py", CELLS),
    "gptqmodel": Rival(  # asks for more workers than two cores give it, and refuses to start
        "gptqmodel",
        "_gptqmodel.py",
        CELLS[:3],
        {"BUILD_CUDA_EXT": "0"},
        {"GPTQMODEL_CPU_WORKERS": "4"},
    ),
    "auto-round": Rival("auto-round", "_auto_round.py", CELLS[:3]),
}


@dataclass(frozen=True)
class Own:
    """A way of ours: methods as they are spelled, in which order, within which budget.

    `{bits}`, `{group}` and `{resident}`, bits in memory, are filled in.
    """

    methods: str
    order: str = "auto"
    budget: str = ""


GRID = "gptq:bits={bits},group={group}"
OWN = {
    "laconic": Own(GRID),
    "laconic --order block": Own(GRID, "block"),
    "laconic, blocktune": Own(f"{GRID} blocktune"),
    "laconic --budget, blocktune": Own(
        "gptq:group={group} blocktune", budget="{resident}bit resident"
    ),
}
PLAIN = ("laconic", "laconic --order block")  # the method of the rivals; their memory is compared
AXES = {"resident": "in as much memory", "stored": "in as large a file"}
GROUP, WINDOWS = 64, 160  # all are fitted to the first 128; ours measures layers on the rest
BEGINNING = 1 << 21  # characters of text/train.txt that windows are taken from
ENVIRONMENTS = ROOT / ".cache" / "rivals"
HERE = Path(__file__).parent
OURS = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(2)
import laconic
from laconic.calibrate.options import RunOptions
from laconic.measure.resources import peak_rss_bytes
from laconic.models.open import open_source
from laconic.spelling import build
model, ids, out, methods, order, budget = sys.argv[1:]
ids = torch.load(ids, weights_only=True)
source = open_source(model)
source.skeleton  # rivals have loaded the model before they are timed; the modules of transformers, too
start = time.perf_counter()
report = laconic.compress(
    source, [build(m) for m in methods.split()], ids, out=out + "/dense", windows=128, budget=budget or None,
    options=RunOptions(order=order),
).report
resident = report.resident_bits_per_weight
seconds = time.perf_counter() - start
stored = sum(f.stat().st_size for f in Path(out, "dense").glob("*.safetensors"))
report = {"seconds": seconds, "peak": peak_rss_bytes(), "stored": stored, "resident": resident}
Path(out, "report.json").write_text(json.dumps(report))
"""


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    models = bench.language_models()
    pythons = {label: environment(rival) for label, rival in RIVALS.items()}
    for label in [label for label, python in pythons.items() if python is None]:
        bench.note(f"{label} could not be installed here, and is left out")
    for name, bits in [cell for cell in CELLS if cell[0] in models]:
        path = models[name]
        whole = bench.cached(f"dense {name}", lambda p=path: losses(bench, p, p))
        runs = {}
        for label in [*OWN, *(la for la in RIVALS if (name, bits) in RIVALS[la].cells)]:
            python = sys.executable if label in OWN else pythons[label]
            if python is not None:
                script = (
                    None if label in OWN else [HERE / "_common.py", HERE / RIVALS[label].script]
                )
                runs[label] = bench.cached(
                    f"{label} int{bits} {name}",
                    lambda la=label, p=path, b=bits, py=python: _run(bench, la, p, b, str(py)),
                    sources=script,
                )
        for label in [label for label, run in runs.items() if "error" in run]:
            bench.note(f"{name} int{bits}: {label} failed: {runs.pop(label)['error']}")
        for run in runs.values():
            run.setdefault("resident", resident_bits(bits))
        _compare(bench, f"{name} int{bits}", runs, whole, rows)
    columns = [
        "cell", "by", "perplexity", "excess nats", "95 %", "resident bits", "stored MB", "s", "peak MB",
    ]  # fmt: skip
    bench.table("symmetric integers in groups of 64, 128 windows, two threads", columns, rows)


def _compare(
    bench: Bench, cell: str, runs: dict[str, Any], whole: dict[str, Any], rows: list[list[Any]]
) -> None:
    found = {label: difference(run, whole) for label, run in runs.items()}
    for label, run in runs.items():
        rows.append([
            cell, label, quality(run), found[label]["difference"], spelt(found[label]),
            run["resident"], run["stored"] / 1e6, run["seconds"], run["peak"] / 1e6,
        ])  # fmt: skip
    ours = runs["laconic"]
    for label in [label for label in runs if label not in OWN]:
        theirs = runs[label]
        bench.check(
            f"{cell}: excess loss at most 1.1 times that of {label}",
            found["laconic"]["difference"] <= 1.1 * found[label]["difference"],
            ours=found["laconic"]["difference"], theirs=found[label]["difference"],
        )  # fmt: skip
        bench.check(
            f"{cell}: at least 5 times faster than {label}",
            5 * ours["seconds"] <= theirs["seconds"],
            ours=ours["seconds"], theirs=theirs["seconds"], ratio=theirs["seconds"] / ours["seconds"],
        )  # fmt: skip
        for axis, words in AXES.items():
            best = min(
                (la for la in OWN if runs[la][axis] <= theirs[axis] * (1 + 1e-6)),
                key=lambda la: found[la]["difference"], default=None,
            )  # fmt: skip
            bench.check(
                f"{cell}: the best of ours {words} loses at most what {label} loses",
                best is not None and found[best]["difference"] <= found[label]["difference"],
                best=best, ours=found[best]["difference"] if best else None,
                theirs=found[label]["difference"],
            )  # fmt: skip
        for own in PLAIN:
            bench.check(
                f"{cell}: {own}: less memory than {label}", runs[own]["peak"] < theirs["peak"],
                ours=runs[own]["peak"], theirs=theirs["peak"],
            )  # fmt: skip
        bench.check(
            f"{cell}: a smaller file than {label}", ours["stored"] < theirs["stored"],
            ours=ours["stored"], theirs=theirs["stored"],
        )  # fmt: skip


def _run(bench: Bench, label: str, model: str, bits: int, python: str) -> dict[str, Any]:
    """What one of them makes of the model, and at what cost; `error` where it did not come to an end."""
    rival = RIVALS.get(label)
    script = ["-c", OURS] if rival is None else [str(HERE / rival.script)]
    with tempfile.TemporaryDirectory() as name:
        ids, out = Path(name) / "windows.pt", Path(name) / "out"
        out.mkdir()
        torch.save(_windows(bench, model), ids)
        given = [str(bits), str(GROUP), str(out)]
        if rival is None:
            own = OWN[label]
            fill = {"bits": bits, "group": GROUP, "resident": resident_bits(bits)}
            given = [str(out), own.methods.format(**fill), own.order, own.budget.format(**fill)]
        done = subprocess.run(
            [python, *script, model, str(ids), *given],
            capture_output=True, text=True, check=False,
            env={**os.environ, **(rival.run if rival else {})},
        )  # fmt: skip
        if done.returncode and rival is not None:
            return {"error": done.stderr.strip().splitlines()[-1][:300]}
        if done.returncode:
            raise SystemExit(f"{label} failed: {done.stderr[-2000:]}")
        report = json.loads((out / "report.json").read_text())
        return {**losses(bench, model, str(out / "dense")), **report}


def resident_bits(bits: int) -> float:
    """Of a weight, with the 16 of its group's scale."""
    return bits + 16 / GROUP


def _windows(bench: Bench, model: str) -> torch.Tensor:
    from transformers import AutoConfig, AutoTokenizer

    context = AutoConfig.from_pretrained(model).max_position_embeddings
    text = read_text(bench.data / "text/train.txt")[:BEGINNING]
    return windows(text, AutoTokenizer.from_pretrained(model), context, WINDOWS).clone()


def environment(rival: Rival) -> Path | None:
    """The Python of a virtual environment with the package, made if missing; None if it cannot be."""
    folder = ENVIRONMENTS / rival.package
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q"]
    torch_version = f"torch=={torch.__version__.split('+')[0]}"
    try:
        if not (folder / "complete").is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([*install, torch_version, "setuptools", "wheel", "ninja"], check=True)
            build = ["--no-build-isolation"] if rival.build else []
            subprocess.run(
                [*install, *build, torch_version, rival.package], check=True,
                env={**os.environ, **rival.build},
            )  # fmt: skip
            (folder / "complete").touch()
    except (OSError, subprocess.CalledProcessError):
        return None
    return python
