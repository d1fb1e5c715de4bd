"""`laconic export --to gguf` in llama.cpp itself: the probabilities and token ids that it finds.

llama.cpp comes compiled in the npm package node-llama-cpp, installed under .cache/rivals when it is missing;
without npm the proof cannot be made and says so. It rounds the inputs of every product to 8 bits, which
laconic does not, and keeps keys and values in fp16: what is left between them on the same weights is small.
Architectures that the zoo does not have are made with random weights, whose answers such differences move
more: those are held against answers to the token before.
"""

import json
import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import laconic
from benchmarks.bench import ROOT, Bench
from benchmarks.paired import training_data
from laconic.calibrate.data import read_text, windows
from laconic.exchange import export
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN

PACKAGE = "node-llama-cpp@3.22.1"
FOLDER = ROOT / ".cache" / "rivals" / "node-llama-cpp"
SCRIPT = Path(__file__).with_suffix(".mjs")
WIDTHS = (4, 8)
GROUP = 32
COUNT = {"quick": 16, "full": 64}  # windows
LENGTH = 128  # tokens of a window
LINES = 500  # of text/valid.txt, whose token ids are compared
DIVERGENCE, LOSS = 1e-3, 2e-3  # nats a token
SHARE = 0.05  # of the divergence from answers to the token before, where weights are random
SPREAD = (
    0.12  # standard deviation of random weights: answers keep 1 of the 8.3 nats that guessing has
)
#: What models with random weights have besides what all have.
RANDOM: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {"head_dim": 64},
}  # fmt: skip


def prove(bench: Bench) -> None:
    if not install():
        bench.note("npm could not install node-llama-cpp here: nothing is proved")
        return
    rows = []
    for name, model in _known(bench).items():
        for bits in WIDTHS:
            run = bench.cached(f"{name} {bits}", lambda m=model, b=bits: _run(bench, m, b))
            bench.check(
                f"{name} Q{bits}_0: llama.cpp's next tokens are laconic's",
                run["divergence"] <= DIVERGENCE and abs(run["theirs"] - run["ours"]) <= LOSS,
                divergence=run["divergence"], from_dense=run["from_dense"],
                ours=run["ours"], theirs=run["theirs"], same_first_choice=run["agree"],
            )  # fmt: skip
            bench.check(
                f"{name} Q{bits}_0: and its token ids are the tokenizer's",
                run["lines_alike"] == run["lines"], lines=run["lines"], alike=run["lines_alike"],
            )  # fmt: skip
            rows.append([
                name, f"Q{bits}_0", run["megabytes"], run["dense"], run["ours"], run["theirs"],
                run["from_dense"], run["divergence"], run["agree"],
            ])  # fmt: skip
    whose = next(iter(bench.language_models().values()))
    for kind in RANDOM:
        run = bench.cached(f"random {kind}", lambda k=kind: _run_random(k, whose))
        bench.check(
            f"random {kind}: llama.cpp's next tokens are laconic's",
            run["divergence"] <= SHARE * run["from_before"] and run["entropy"] < run["most"] - 0.5,
            **run,
        )  # fmt: skip
    columns = [
        "model", "format", "MB", "loss before", "in laconic", "in llama.cpp",
        "KL(before, laconic)", "KL(laconic, llama.cpp)", "same first choice",
    ]  # fmt: skip
    bench.table(f"{COUNT[bench.slice]} windows of {LENGTH} tokens, nats a token", columns, rows)


def install() -> bool:
    """Whether node-llama-cpp is under `FOLDER`; tries to put it there."""
    done = FOLDER / "complete"
    if not done.is_file():
        npm = shutil.which("npm")
        if npm is None:
            return False
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "package.json").write_text('{"private": true}')
        # its scripts would compile llama.cpp where no binary fits; those that fit are packages of their own
        asked = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        if subprocess.run(asked, cwd=FOLDER, capture_output=True, check=False).returncode:
            return False
        done.touch()
    return True


def _known(bench: Bench) -> dict[str, str]:
    """Language models of an architecture that the export knows."""
    from laconic.exchange.gguf import ARCHITECTURES

    kinds = {
        name: json.loads((Path(model) / "config.json").read_text())["model_type"]
        for name, model in bench.language_models().items()
    }
    return {n: m for n, m in bench.language_models().items() if kinds[n] in ARCHITECTURES}


def _run(bench: Bench, model: str, bits: int) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = read_text(bench.data / "text/valid.txt")
    ids = windows(text, tokenizer, LENGTH, COUNT[bench.slice])
    lines = [line for line in text.splitlines() if line.strip()][:LINES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        laconic.compress(model, GPTQ(bits, GROUP), training_data(bench, model), out=folder / "ours")
        export(folder / "ours", "gguf", folder / "model.gguf")
        theirs, found = _in_llama_cpp(folder, ids, lines)
        ours = _log_probabilities(str(folder / "ours"), ids)
        size = (folder / "model.gguf").stat().st_size
    dense = _log_probabilities(model, ids)
    return {
        "divergence": _divergence(ours, theirs),
        "from_dense": _divergence(dense, ours),
        "dense": _loss(dense, ids), "ours": _loss(ours, ids), "theirs": _loss(theirs, ids),
        "agree": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        "lines": len(lines), "megabytes": size / 1e6,
        "lines_alike": sum(a == b for a, b in zip(found, tokenizer(lines)["input_ids"])),
    }  # fmt: skip


def _run_random(kind: str, tokenizer_of: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        tie_word_embeddings=False, initializer_range=SPREAD, **RANDOM[kind],
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.7, 1.3)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=SPREAD)
    ids = torch.randint(0, len(tokenizer), (4, LENGTH // 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "dense")
        tokenizer.save_pretrained(folder / "dense")
        laconic.compress(folder / "dense", RTN(8, GROUP, symmetric=True), out=folder / "ours")
        export(folder / "ours", "gguf", folder / "model.gguf")
        theirs, _ = _in_llama_cpp(folder, ids, [])
        ours = _log_probabilities(str(folder / "ours"), ids)
    return {
        "divergence": _divergence(ours, theirs),
        "from_before": _divergence(ours[:, 1:], theirs[:, :-1]),
        "entropy": -(ours.exp() * ours).sum(-1).mean().item(),
        "most": math.log(len(tokenizer)),
        "agree": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
    }  # fmt: skip


def _in_llama_cpp(folder: Path, ids: Tensor, lines: list[str]) -> tuple[Tensor, list[list[int]]]:
    """Log-probabilities (N, T, V) that llama.cpp finds after each token, and the ids of `lines`."""
    script = shutil.copy(SCRIPT, FOLDER)  # node looks for packages beside the script
    (folder / "windows.json").write_text(json.dumps(ids.tolist()))
    (folder / "lines.json").write_text(json.dumps(lines))
    files = ["model.gguf", "windows.json", "probabilities", "lines.json", "ids.json"]
    done = subprocess.run(
        ["node", script, *(str(folder / file) for file in files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"llama.cpp failed: {done.stderr[-2000:]}")
    found = np.fromfile(folder / "probabilities", np.float32).reshape(*ids.shape, -1)
    ids_of_lines = json.loads((folder / "ids.json").read_text())
    return torch.from_numpy(found).double().clamp_min(1e-30).log(), ids_of_lines


@torch.no_grad()
def _log_probabilities(path: str, ids: Tensor) -> Tensor:
    model = laconic.load(path, dtype=torch.float32)
    return torch.cat([model(input_ids=b).logits.double().log_softmax(-1) for b in ids.split(8)])


def _divergence(a: Tensor, b: Tensor) -> float:
    """KL(a, b) of log-probabilities, in nats a token."""
    return (a.exp() * (a - b)).sum(-1).mean().item()


def _loss(log_probabilities: Tensor, ids: Tensor) -> float:
    """Of the tokens after the first, in nats each."""
    return -log_probabilities[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()
