"""LoRA on disk, in PEFT's layout: `adapter_model.safetensors` and `adapter_config.json`."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from laconic.errors import CorruptFile, UsageError, did_you_mean
from laconic.tensors.modules import is_conv1d
from laconic.tune.adapters import attach, loras, matches
from laconic.tune.lora import LoRA, is_linear, linear_shape
from laconic.tune.sparse_lora import KINDS

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's, before every name
PLAIN = "LORA"  # PEFT's name; other kinds get one that PEFT refuses, instead of being loaded wrong


def save_lora(model: nn.Module, folder: str | Path) -> Path:
    """Writes the adapters as PEFT does: `adapter_model.safetensors` and `adapter_config.json`.

    PEFT loads those of kind `plain`. The masks of `masked` ones are not stored: they are those of the
    pruned model.

    Raises:
        UsageError: there are no adapters, or they are of several kinds.
    """
    adapters = loras(model)
    kinds = {adapter.kind for adapter in adapters.values()}
    if len(kinds) != 1:
        raise UsageError(
            f"adapters of one kind are saved together, found {sorted(kinds) or 'none'}"
        )
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, adapter in adapters.items():
        for name in ("lora_A", "lora_B"):
            weight = getattr(adapter, name).weight.detach().cpu().contiguous()
            tensors[f"{PREFIX}{path}.{name}.weight"] = weight
    temporary = out / f"{TENSORS}.{os.getpid()}"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(out / TENSORS)
    temporary = out / f"{CONFIG}.{os.getpid()}"
    temporary.write_text(json.dumps(_config(model, adapters, *kinds), indent=2) + "\n")
    temporary.replace(out / CONFIG)
    return out


def load_lora(
    model: nn.Module, folder: str | Path, *, masks: Mapping[str, Tensor] | None = None
) -> dict[str, LoRA]:
    """Adds adapters that `save_lora` or PEFT wrote; the model's parameters are frozen.

    Args:
        model: with the layers that the adapters were trained for.
        folder: with both files.
        masks: as in `add_lora`.

    Raises:
        CorruptFile: the files are missing, damaged or contradict each other.
        UsageError: they are of another model, or use what is not known here.
    """
    config, tensors = _read(Path(folder))
    kind, factors = _kind(config, folder), _factors(tensors, folder)
    shapes = {p: linear_shape(m) for p, m in model.named_modules() if is_linear(m)}
    for path, (a, b) in factors.items():
        if shapes.get(path) != torch.Size((b.shape[0], a.shape[1])):
            here = f"{tuple(shapes[path])} here" if path in shapes else "not here"
            raise UsageError(
                f"{folder} is for another model: {path} is ({b.shape[0]}, {a.shape[1]}) there, {here}"
            )
    ranks = {path: len(factors[path][0]) for path in shapes if path in factors}
    found = attach(
        model, ranks, kind, config["lora_alpha"], config["lora_dropout"], masks or {}, seed=0
    )
    with torch.no_grad():
        for path, adapter in found.items():
            patterns = config.get("alpha_pattern") or {}
            own = [value for pattern, value in patterns.items() if matches(path, pattern)]
            adapter.alpha = float(own[0] if own else config["lora_alpha"])
            adapter.lora_A.weight.copy_(factors[path][0])
            adapter.lora_B.weight.copy_(factors[path][1])
    return found


def _config(model: nn.Module, adapters: Mapping[str, LoRA], kind: str) -> dict[str, Any]:
    first = next(iter(adapters.values()))
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return {
        "peft_type": PLAIN if kind == "plain" else f"LACONIC_{kind.upper()}_{PLAIN}",
        "base_model_name_or_path": name or None,
        "task_type": None,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout.p,
        "target_modules": list(adapters),
        "bias": "none",
        "fan_in_fan_out": any(is_conv1d(adapter.base) for adapter in adapters.values()),
        "rank_pattern": {p: a.rank for p, a in adapters.items() if a.rank != first.rank},
        "alpha_pattern": {p: a.alpha for p, a in adapters.items() if a.alpha != first.alpha},
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        for name in ("lora_alpha", "lora_dropout"):
            config[name] = float(config[name])
        return config, load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptFile(f"{folder}: no adapter in PEFT's layout: {error!r}") from error


def _kind(config: Mapping[str, Any], folder: str | Path) -> str:
    for name in ("use_rslora", "use_dora"):
        if config.get(name):
            raise UsageError(f"{folder}: adapters with {name} are not known here")
    written = str(config.get("peft_type"))
    kinds = {PLAIN: "plain"} | {f"LACONIC_{k.upper()}_{PLAIN}": k for k in KINDS}
    if written not in kinds:
        raise UsageError(
            f"{folder}: an adapter of type {written!r}; {did_you_mean(written, kinds)}"
        )
    return kinds[written]


def _factors(tensors: Mapping[str, Tensor], folder: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A (rank, in) and B (out, rank) by module path."""
    ends = Counter(name.split(".lora_")[0] for name in tensors)
    found = {}
    for start in ends:
        pair = [tensors.get(f"{start}.lora_{letter}.weight") for letter in "AB"]
        a, b = pair
        if ends[start] != 2 or a is None or b is None or a.ndim != 2 or b.ndim != 2:
            raise CorruptFile(f"{folder}: {start} is no pair of lora_A and lora_B")
        if len(a) != b.shape[1]:
            raise CorruptFile(f"{folder}: {start} has ranks {len(a)} and {b.shape[1]}")
        found[start.removeprefix(PREFIX)] = (a, b)
    return found
