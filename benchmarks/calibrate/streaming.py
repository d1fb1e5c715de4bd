"""Models larger than memory should be: what a run holds, whether it resumes, and whether bits repeat.

The model is a Llama of random weights, written block by block; `full` takes one of more than 6 GB,
`quick` a tenth of it. Every run is a process of its own, whose `VmHWM` is read.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench import Bench

WIDTH, INNER, HEADS, VOCABULARY = 2048, 5632, 16, 8192
BLOCKS = {"full": (15, 30, 62), "quick": (2, 4, 6)}  # three sizes
CONTEXT, SEQUENCES = 256, 16
BASE = "import torch, laconic, sys; torch.set_num_threads(2)\nfrom laconic.models.open import open_source\n"
END = """
import json, time
from laconic.measure.resources import peak_rss_bytes
print(json.dumps({"peak": peak_rss_bytes(), "seconds": time.perf_counter() - start, **found}))
"""
START = "import time; start = time.perf_counter(); found = {}\n"
COMPRESS = """
from laconic.compression import compress
from laconic.quantize.rtn import RTN
report = compress(sys.argv[1], RTN(bits=4, range="minmax"), out=sys.argv[2]).report
found = {"stored": report.stored_bytes, "dense": report.dense_bytes}
"""
STATISTICS = """
from laconic.calibrate.collect import collect
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import SecondMoment
from laconic.calibrate.stream import open_stream
from pathlib import Path
from laconic.numerics.allocator import give_back_memory
give_back_memory()
source = open_source(sys.argv[1])
inputs = [{"input_ids": row[None]} for row in torch.load(sys.argv[3], weights_only=True)]
found = {"block": 0, "sums": 0}
with torch.inference_mode():
    stream = open_stream(source, inputs, folder=Path(sys.argv[2]))
    for number, block in enumerate(source.blocks):
        live = LiveBlock(source, block)
        stats = collect(live, live.layers, [SecondMoment()],
                        lambda s: stream.run(number, live.module, s), range(len(inputs)))
        sums = {id(c): c.sums["moment"].nbytes for st in stats.values() for c in st.collected.values()}
        found["sums"] = sum(sums.values())
        found["block"] = sum(t.nbytes for t in live.tensors.values())
        del stats
        stream.advance(number, live.module)
        del live
"""
OPEN = "\nsource = open_source(sys.argv[1])\n"
GPTQ_RUN = """
import benchmarks.calibrate._run as run
run.compress(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def prove(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _sizes(bench, folder)
        _statistics(bench, folder)
    _same_bits(bench)


def _sizes(bench: Bench, folder: Path) -> None:
    """RTN from disk to disk at three sizes."""
    runs, rows = [], []
    for blocks in BLOCKS[bench.slice]:
        run = bench.cached(f"rtn {blocks}", lambda b=blocks: _compress(folder, b))
        runs.append(run)
        rows.append([blocks, run["dense"] / 1e9, run["peak"] / 1e9, run["peak"] / run["dense"], run["seconds"], run["stored"] / 1e9])  # fmt: skip
    columns = ["blocks", "model GB", "peak GB", "peak / model", "s", "stored GB"]
    bench.table("RTN int4, two threads, from disk to disk", columns, rows)
    sizes, times = ([run[key] for run in runs] for key in ("dense", "seconds"))
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    bench.note(f"time grows with the model's bytes to the power of {exponent:.2f}")
    if bench.slice == "full":
        bench.check(
            "a Llama of more than 6 GB: peak memory at most 20 % of the model's bytes",
            runs[-1]["dense"] > 6e9 and runs[-1]["peak"] <= 0.2 * runs[-1]["dense"],
            model=runs[-1]["dense"], peak=runs[-1]["peak"], share=runs[-1]["peak"] / runs[-1]["dense"],
        )  # fmt: skip
    growth = runs[-1]["peak"] - runs[0]["peak"]
    bench.check(
        "peak memory does not grow with the number of blocks",
        growth <= 0.03 * (runs[-1]["dense"] - runs[0]["dense"]),
        grew=growth, model_grew=runs[-1]["dense"] - runs[0]["dense"],
    )  # fmt: skip


def _compress(folder: Path, blocks: int) -> dict[str, Any]:
    model, out = folder / f"llama-{blocks}", folder / "out"
    write_llama(model, blocks)
    try:
        return _process(BASE + START + COMPRESS + END, model, out)
    finally:
        subprocess.run(["rm", "-rf", model, out], check=True)


def _statistics(bench: Bench, folder: Path) -> None:
    """A pass as GPTQ needs it, over three blocks."""

    def measure() -> dict[str, Any]:
        model = folder / "three"
        write_llama(model, 3)
        tokens = torch.randint(
            VOCABULARY, (SEQUENCES, CONTEXT), generator=torch.Generator().manual_seed(0)
        )
        torch.save(tokens, folder / "tokens.pt")
        base = _process(BASE + START + OPEN + END, model, folder)["peak"]
        run = _process(
            BASE + START + STATISTICS + END, model, folder / "states", folder / "tokens.pt"
        )
        return {"base": base, **run}

    run = bench.cached("statistics", measure)
    allowed = run["base"] + 1.2 * (run["block"] + run["sums"])
    bench.check(
        "second moments of three blocks: peak at most base + 1.2 x (one block + its sums)",
        run["peak"] <= allowed, peak=run["peak"], allowed=allowed, base=run["base"],
        block=run["block"], sums=run["sums"],
    )  # fmt: skip


def _same_bits(bench: Bench) -> None:
    """GPTQ on the zoo: threads, batches, Ray workers, kills."""
    names = [n for n in ("llama-tiny", "moe-tiny") if n in bench.models()] or list(
        bench.language_models()
    )[:1]
    for name in names:
        model = bench.models()[name]
        found = bench.cached(f"bits {name}", lambda m=model: _variants(bench, m))
        bench.check(
            f"{name}: GPTQ gives the same bytes with batch 1 and 8, 1 and 2 threads, 1 and 2 Ray workers, "
            "and resumed after kill -9",
            len(set(found.values())) == 1, **found,
        )  # fmt: skip


def _variants(bench: Bench, model: str) -> dict[str, str]:
    data = str(bench.data_for(model).parent / "train.txt")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for label in ("t1 b1", "t1 b8", "t2 b1", "t2 b8", "ray1", "ray2"):
            found[label] = _digest(_gptq(model, Path(name) / label.replace(" ", "-"), data, label))
        out = Path(name) / "killed"
        run = subprocess.Popen(_command(GPTQ_RUN, model, out, data), env=_environment("t1 b1"))
        while not list(Path(name).glob(".killed.partial-*/progress.json")) and run.poll() is None:
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        interrupted = not out.exists()
        found["killed"] = (
            _digest(_gptq(model, out, data, "t2 b8")) if interrupted else "finished too soon"
        )
    return found


def _gptq(model: str, out: Path, data: str, label: str) -> Path:
    subprocess.run(
        _command(GPTQ_RUN, model, out, data), env=_environment(label), check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return out


def _environment(label: str) -> dict[str, str]:
    return {**os.environ, "LACONIC_BENCH": label}


def _command(code: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-c", "import sys\n" + code, *map(str, arguments)]


def _digest(folder: Path) -> str:
    import xxhash

    return xxhash.xxh3_64_hexdigest((folder / "model.safetensors").read_bytes())


def _process(code: str, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def write_llama(folder: Path, blocks: int) -> None:
    """A Llama in bfloat16 with random weights; one file a block, blocks alike up to their scale."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=blocks,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape, generator=generator)).bfloat16()

    attention = {f"self_attn.{n}_proj.weight": normal(WIDTH, WIDTH) for n in "qkvo"}
    mlp = {f"mlp.{n}_proj.weight": normal(INNER, WIDTH) for n in ("gate", "up")}
    block = {**attention, **mlp, "mlp.down_proj.weight": normal(WIDTH, INNER)}
    norms = {
        f"{n}_layernorm.weight": torch.ones(WIDTH).bfloat16() for n in ("input", "post_attention")
    }
    weight_map = {}
    for number in range(blocks):
        scale = 1 + number / 64
        tensors = {f"model.layers.{number}.{n}": (t * scale).bfloat16() for n, t in block.items()}
        tensors |= {f"model.layers.{number}.{n}": t for n, t in norms.items()}
        file = f"model-{number + 1:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    rest = {
        "model.embed_tokens.weight": normal(VOCABULARY, WIDTH),
        "lm_head.weight": normal(VOCABULARY, WIDTH),
    }
    rest["model.norm.weight"] = torch.ones(WIDTH).bfloat16()
    file = f"model-{blocks + 1:05d}-of-{blocks + 1:05d}.safetensors"
    save_file(rest, folder / file)
    weight_map |= dict.fromkeys(rest, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
