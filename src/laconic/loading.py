"""`load`: any model directory, compressed or not, as a module ready to compute."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from laconic.errors import CorruptFile, LaconicError, UnsupportedModel
from laconic.models.huggingface import load_config, model_class
from laconic.models.memory import MODULE_CONFIG, call_factory, from_factory, is_factory
from laconic.models.safetensors import find_shards, read_headers, read_tensor
from laconic.tensors.experts import CompressedExperts
from laconic.tensors.modules import CompressedModule
from laconic.tensors.replacement import replace_module

TRUSTED = "laconic."
LOADING_ERRORS = (
    RuntimeError, ValueError, KeyError, OSError, AttributeError, TypeError, SafetensorError
)  # fmt: skip
ALL_SLOTS = (*CompressedModule.slot_names, *CompressedExperts.slot_names)


def load(
    path: str | Path, *, dtype: torch.dtype | str = "auto", device: str = "cpu", trust: bool = False
) -> nn.Module:
    """Opens a model.

    Args:
        path: a directory that laconic or transformers wrote, or `package.module:factory[@path]`.
        dtype: of the uncompressed parameters; `"auto"` is the checkpoint's. Compressed values keep
            their own and compute in the dtype of their input.
        device: where the model goes.
        trust: whether a directory may name a factory outside laconic, which is then imported and
            called.

    Returns:
        The model in evaluation mode.

    Raises:
        UnsupportedModel: no model is there.
        CorruptFile: its files are damaged.
    """
    folder = Path(path)
    if (folder / MODULE_CONFIG).is_file():
        model = _cast(_load_module(folder, trust), dtype)
    elif folder.is_dir():
        model = _load_pretrained(folder, dtype)
    elif is_factory(str(path)):
        model = _cast(from_factory(str(path)).skeleton, dtype)
    else:
        raise UnsupportedModel(
            f"{path}: no such directory; expected one with config.json and *.safetensors, "
            "or package.module:factory[@path]"
        )
    return nn.Module.to(model, device=device).eval()


def _cast(model: nn.Module, dtype: torch.dtype | str) -> nn.Module:
    """`model` in `dtype`. Transformers does it itself, and rightly leaves rotary tables alone."""
    return model.to(dtype) if isinstance(dtype, torch.dtype) else model


def _load_pretrained(folder: Path, dtype: torch.dtype | str) -> nn.Module:
    import laconic.hf  # noqa: F401  (registers)

    config = load_config(folder)
    read_headers(find_shards(folder))  # names a damaged file before transformers stumbles over it
    try:
        model, info = model_class(config).from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    except LaconicError:
        raise
    except LOADING_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CorruptFile(f"{folder}: transformers cannot load it: {reason}") from error
    if info["missing_keys"]:  # transformers warns and goes on with random values
        raise CorruptFile(f"{folder}: the weight files lack {min(info['missing_keys'])}")
    loaded: nn.Module = model
    return loaded


def _load_module(folder: Path, trust: bool) -> nn.Module:
    try:
        config: dict[str, Any] = json.loads((folder / MODULE_CONFIG).read_text())
        factory = str(config["factory"])
        modules = [str(path) for path in config["quantization_config"]["modules"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{folder / MODULE_CONFIG}: cannot be read: {error!r}") from error
    if not trust and not factory.startswith(TRUSTED):
        raise UnsupportedModel(
            f"{folder} is built by {factory}, code outside laconic: pass trust=True (--trust) if you "
            "trust it"
        )
    model = call_factory(factory)
    entries = read_headers(find_shards(folder))
    for path in modules:
        replace_module(model, path, dict.fromkeys(ALL_SLOTS, 0))
    state = {name: read_tensor(entry) for name, entry in entries.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CorruptFile(f"{folder}: {' '.join(str(error).split())}") from error
    return model
