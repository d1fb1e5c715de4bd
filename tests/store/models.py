"""Small models for stores: a base, what fine-tuning makes of it, and others."""

from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {"embed": (300, 48), "layers.0.up": (160, 48), "layers.0.down": (48, 160), "norm": (48,)}


def weights(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.05).to(dtype)
        for name, shape in SHAPES.items()
    }


def tuned(base: dict[str, torch.Tensor], change: float, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + change * torch.randn(tensor.shape, generator=generator)).to(
            tensor.dtype
        )
        for name, tensor in base.items()
    }


def save(folder: Path, tensors: dict[str, torch.Tensor], config: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    return folder
