"""LoRA on disk, in PEFT's layout: `adapter_model.safetensors` and `adapter_config.json`."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from laconic.errors import CorruptFile, UsageError, did_you_mean
from laconic.files import save_json, whole_file
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
    first = next(iter(adapters.values()))
    factors = {
        path: (a.lora_A.weight.detach(), a.lora_B.weight.detach()) for path, a in adapters.items()
    }
    return save_factors(
        folder, factors, alphas={path: a.alpha for path, a in adapters.items()}, dropout=first.dropout.p,
        kind=first.kind, base=getattr(getattr(model, "config", None), "_name_or_path", None),
        transposed=any(is_conv1d(adapter.base) for adapter in adapters.values()),
    )  # fmt: skip


def save_factors(
    folder: str | Path, factors: Mapping[str, tuple[Tensor, Tensor]],
    *, alphas: Mapping[str, float] | None = None, dropout: float = 0.0, kind: str = "plain",
    base: str | None = None, transposed: bool = False,
) -> Path:  # fmt: skip
    """Writes factors of low rank in PEFT's layout; the model adds `alpha / rank * B (A x)`.

    Args:
        folder: is made.
        factors: A (rank, in) and B (out, rank) by module path; at least one.
        alphas: by module path; a factor of 1 by default.
        dropout: of the inputs while training.
        kind: other than `plain` PEFT refuses.
        base: name of the model.
        transposed: whether the layers keep their weight as (in, out), as GPT-2's do.
    """
    out = Path(folder)
    ranks = {path: len(a) for path, (a, _) in factors.items()}
    scales = {path: float(rank) for path, rank in ranks.items()} if alphas is None else alphas
    tensors = {
        f"{PREFIX}{path}.{name}.weight": part.cpu().contiguous()
        for path, pair in factors.items() for name, part in zip(("lora_A", "lora_B"), pair)
    }  # fmt: skip
    first = next(iter(factors))
    config = {
        "peft_type": PLAIN if kind == "plain" else f"LACONIC_{kind.upper()}_{PLAIN}",
        "base_model_name_or_path": base or None,
        "task_type": None,
        "inference_mode": True,
        "r": ranks[first],
        "lora_alpha": scales[first],
        "lora_dropout": dropout,
        "target_modules": list(factors),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "rank_pattern": {p: r for p, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {p: a for p, a in scales.items() if a != scales[first]},
    }
    with whole_file(out / TENSORS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    save_json(out / CONFIG, config, indent=2)
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
