"""README's examples, word for word, on a model that nobody here has seen.

A GPT-NeoX (parallel attention and feed-forward, one fused projection for query, key and value: none of the
zoo has that) is trained for five minutes from a random seed, and put into an empty folder as `my-model`,
beside `train.txt` and `valid.txt`. Then every block of README's "Examples" is run there as it stands:
shell blocks by a shell, line by line, Python blocks by Python; `model` of the last one is my-model.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.bench import ROOT, Bench
from laconic.calibrate.data import read_text, windows

MINUTES = {"quick": 1.0, "full": 5.0}
CONTEXT, BATCH, RATE, WARMUP = 256, 16, 2e-3, 50
CHARACTERS = 12 << 20  # of text/train.txt that the model is trained on
SMALL = 2 << 20  # of it that lie in the folder as train.txt
CLOSE = 0.005
BUDGET = 2.3  # stored bits, in README's second example


def prove(bench: Bench) -> None:
    seed = int.from_bytes(os.urandom(2))
    runs = bench.cached("readme", lambda: _use(bench, seed))
    bench.note(
        f"GPT-NeoX of {runs['parameters'] / 1e6:.1f} M parameters, seed {runs['seed']}, trained for "
        f"{runs['steps']} steps: perplexity {runs['dense']:.1f} on text/valid.txt"
    )
    for block in runs["blocks"]:
        bench.check(f"runs: {block['text']}", block["code"] == 0, seconds=block["seconds"])
        if block["code"]:
            bench.note(block["error"])
    made = runs["made"]
    bench.check(
        "4 bits in groups of 64 take at most 4.25 bits a weight in the file",
        made["four"] <= 4.25, bits=made["four"], kept_of_the_file=made["share"],
    )  # fmt: skip
    bench.check(
        f"the budget of {BUDGET} bits is kept, and missed by at most 0.5 %",
        (1 - CLOSE) * BUDGET <= made["bits"] <= BUDGET, bits=made["bits"],
    )  # fmt: skip
    bench.check("transformers and laconic.load open the same weights", made["same"])
    bench.check("the report is one page with both models", made["page"])
    columns = ["example", "exit code", "s"]
    bench.table(
        "README's examples", columns,
        [[b["text"], b["code"], b["seconds"]] for b in runs["blocks"]],
    )  # fmt: skip


def _use(bench: Bench, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = _prepare(bench, folder, seed)
        blocks = [_run(block, folder) for block in examples((ROOT / "README.md").read_text())]
        return {"seed": seed, **trained, "blocks": blocks, "made": _made(folder)}


def examples(readme: str) -> list[tuple[str, str]]:
    """(language, text) of every block of the section "Examples"; shell blocks line by line."""
    section = readme.split("## Examples")[1].split("\n## ")[0]
    found = []
    for language, text in re.findall(r"```(\w*)\n(.*?)```", section, flags=re.DOTALL):
        lines = [text.strip()] if language else text.strip().splitlines()
        found += [(language or "sh", line) for line in lines]
    return found


def _run(block: tuple[str, str], folder: Path) -> dict[str, Any]:
    language, text = block
    if language == "python" and "model =" not in text:
        opened = "AutoModelForCausalLM.from_pretrained('my-model')"
        text = f"from transformers import AutoModelForCausalLM\nmodel = {opened}\n{text}"
    command = [sys.executable, "-c", text] if language == "python" else ["sh", "-c", text]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    return {
        "text": block[1].splitlines()[0] if language == "sh" else f"Python: {block[1].splitlines()[-1]}",
        "code": done.returncode, "seconds": time.perf_counter() - start,
        "error": done.stderr.strip()[-300:],
    }  # fmt: skip


def _prepare(bench: Bench, folder: Path, seed: int) -> dict[str, Any]:
    """The folder that README's reader has."""
    tokenizer = AutoTokenizer.from_pretrained(next(iter(bench.language_models().values())))
    text = read_text(bench.data / "text/train.txt")
    (folder / "train.txt").write_text(text[:SMALL])
    shutil.copyfile(bench.data / "text/valid.txt", folder / "valid.txt")
    plain = [n for n in bench.models() if n.startswith("resnet")]
    if plain:
        shutil.copytree(bench.zoo / plain[0], folder / "weights")
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=6, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    data = windows(text[:CHARACTERS], tokenizer, CONTEXT, None)
    steps = _train(model, data, 60 * MINUTES[bench.slice])
    model.to(torch.bfloat16).save_pretrained(folder / "my-model")
    tokenizer.save_pretrained(folder / "my-model")
    held = windows((folder / "valid.txt").read_text(), tokenizer, CONTEXT, 100)
    with torch.inference_mode():
        loss = torch.stack([model.float()(input_ids=w[None], labels=w[None]).loss for w in held])
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "steps": steps, "dense": math.exp(loss.mean().item())}


def _train(model: torch.nn.Module, data: torch.Tensor, seconds: float) -> int:
    """AdamW until the time is over; the rate falls linearly with it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    start, steps = time.perf_counter(), 0
    model.train()
    while (passed := time.perf_counter() - start) < seconds:
        rate = RATE * min(1.0, (steps + 1) / WARMUP) * max(0.02, 1 - passed / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = data[torch.randint(len(data), (BATCH,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    model.eval()
    return steps


def _made(folder: Path) -> dict[str, Any]:
    """What the examples have left."""
    from transformers import AutoModelForCausalLM

    import laconic
    import laconic.hf

    def size(name: str) -> int:
        return sum(f.stat().st_size for f in (folder / name).glob("*.safetensors"))

    ids = torch.arange(40)[None] + 100
    with torch.inference_mode():
        here = laconic.load(folder / "my-model-4bit")(input_ids=ids).logits
        there = AutoModelForCausalLM.from_pretrained(folder / "my-model-4bit")(input_ids=ids).logits
    four, report = (
        json.loads((folder / name / "laconic.json").read_text())
        for name in ("my-model-4bit", "smaller")
    )
    page = (folder / "report.html").read_text()
    return {
        "share": size("my-model-4bit") / size("my-model"), "bits": report["bits_per_weight"], "four": four["bits_per_weight"],
        "same": torch.equal(here, there), "page": "my-model-4bit" in page and "4bit" in page,
    }  # fmt: skip
