"""Variants of a language model as hubs hold them, made by the benchmark itself."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import laconic
from laconic.quantize.rtn import RTN

WEIGHTS = "model.safetensors"
BATCH, WIDTH = 4, 128


def tokens(model: str, text: Path, start: int = 0, size: int = 2_000_000) -> Tensor:
    """Token ids of a part of a text."""
    with text.open(encoding="utf-8") as file:
        file.seek(start)
        part = file.read(size)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return torch.tensor(tokenizer(part.partition(" ")[2])["input_ids"])


def fine_tuned(
    model: str, ids: Tensor, rate: float, marks: list[int], *, seed: int = 0, fresh: bool = False
) -> Iterator[dict[str, Tensor]]:
    """bf16 weights after each number of steps in `marks`, of AdamW in fp32 at a constant `rate`.

    `fresh` begins with random weights of the same architecture instead.
    """
    torch.manual_seed(seed)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if fresh:
        net = AutoModelForCausalLM.from_config(net.config).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    for step in range(1, max(marks) + 1):
        places = torch.randint(0, len(ids) - WIDTH - 1, (BATCH,))
        batch = torch.stack([ids[p : p + WIDTH] for p in places])
        net(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in marks:
            yield stored(net.state_dict())


def stored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a checkpoint has them: bf16, tied tensors once."""
    seen: dict[int, str] = {}
    kept = {}
    for name, tensor in weights.items():
        if seen.setdefault(tensor.data_ptr(), name) == name:
            kept[name] = tensor.detach().to(torch.bfloat16).contiguous().clone()
    return kept


def merged(weights: dict[str, Tensor], rank: int, scale: float, seed: int) -> dict[str, Tensor]:
    """With an adapter of low rank merged into every square or larger matrix of a block."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in weights.items():
        if tensor.ndim == 2 and "embed" not in name and "head" not in name:
            left = torch.randn(tensor.shape[0], rank, generator=generator)
            right = torch.randn(rank, tensor.shape[1], generator=generator)
            tensor = (tensor.float() + scale * left @ right / rank).to(tensor.dtype)
        found[name] = tensor
    return found


def save(folder: Path, base: str, weights: dict[str, Tensor], shards: int = 1) -> Path:
    """A model directory with the small files of `base`."""
    folder.mkdir(parents=True)
    for file in Path(base).iterdir():
        if file.suffix in (".json", ".txt", ".model") and "index" not in file.name:
            shutil.copyfile(file, folder / file.name)
    names = list(weights)
    for number in range(shards):
        part = {n: weights[n] for n in names[number::shards]}
        name = WEIGHTS if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
    return folder


def hub(model: str, name: str, text: Path, folder: Path, steps: int) -> list[Path]:
    """Twenty variants of a model, itself first."""
    base = {n: t.to(torch.bfloat16) for n, t in load_file(Path(model) / WEIGHTS).items()}
    ids = tokens(model, text)
    made = [save(folder / name, model, base)]
    for rate in (1e-6, 1e-5, 1e-4):
        for seed in range(2):
            (weights,) = fine_tuned(model, ids, rate, [steps], seed=seed)
            made.append(save(folder / f"{name}-tuned-{rate:g}-{seed}", model, weights))
    run = fine_tuned(model, ids, 3e-5, [steps * k // 5 or k for k in range(1, 6)], seed=9)
    for number, weights in enumerate(run):
        made.append(save(folder / f"{name}-run-{number}", model, weights))
    for seed in range(4):
        weights = merged(base, 8, 2e-4, seed)
        made.append(save(folder / f"{name}-lora-{seed}", model, weights))
    renamed = {f"base.{n}": t for n, t in base.items()}
    made.append(save(folder / f"{name}-renamed", model, renamed))
    made.append(save(folder / f"{name}-resharded", model, base, shards=3))
    made.append(save(folder / f"{name}-copy", model, base))
    laconic.compress(made[0], RTN(bits=4), out=folder / f"{name}-int4")
    return [*made, folder / f"{name}-int4"]
