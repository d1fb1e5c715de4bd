"""What the scripts of rivals share; it runs in their environments, so it imports nothing of laconic.

A script is called as `python FILE MODEL WINDOWS BITS GROUP OUT` and leaves in OUT the folders `dense` (the
quantized values as an ordinary model, for our evaluation) and `packed` (what the package itself writes),
and `report.json`: seconds of the call alone, peak memory of the process, bytes of the packed weights.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

THREADS, SEQUENCES = 2, 128


def run(quantize: Callable[[str, torch.Tensor, int, int, Path], float]) -> None:
    """Does what the command line asks; `quantize` returns the seconds it took."""
    model, windows, bits, group, out = sys.argv[1:]
    torch.set_num_threads(THREADS)
    ids = torch.load(windows, weights_only=True)[:SEQUENCES]
    seconds = quantize(model, ids, int(bits), int(group), Path(out))
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)
    stored = sum(file.stat().st_size for file in Path(out, "packed").rglob("*.safetensors"))
    report = {"seconds": seconds, "peak": peak, "stored": stored}
    Path(out, "report.json").write_text(json.dumps(report))


def save_dense(state: dict[str, torch.Tensor], model: str, out: Path) -> None:
    """Writes those of `state` that `model` has, under its names, beside its configuration."""
    from safetensors.torch import load_file, save_file

    folder = out / "dense"
    folder.mkdir(parents=True)
    names = [n for shard in Path(model).glob("*.safetensors") for n in load_file(shard)]
    save_file(
        {n: state[n].contiguous() for n in names}, folder / "model.safetensors", {"format": "pt"}
    )
    for file in Path(model).glob("*.json"):
        if "index" not in file.name:
            shutil.copyfile(file, folder / file.name)
