"""Files of every kind that stores know, made for tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.02).bfloat16()


def safetensors(path: Path) -> None:
    tensors = {
        "layers.0.weight": weights(60, 50), "layers.0.norm": weights(50), "scalar": weights(),
        "layers.1.weight": weights(60, 50), "empty": weights(0, 4), "ids": torch.arange(3000),
        "flags": torch.rand(5001) < 0.5, "zeros": torch.zeros(3000, dtype=torch.float64),
    }  # fmt: skip
    save_file(tensors, path, metadata={"format": "pt"})


def checkpoint(path: Path) -> None:
    model = torch.nn.Linear(80, 60)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 80)).square().sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, path)


def old_checkpoint(path: Path) -> None:
    torch.save({"a": weights(60, 50)}, path, _use_new_zipfile_serialization=False)


def array(path: Path) -> None:
    np.save(path, np.linspace(0, 1, 3000, dtype=np.float32).reshape(60, 50))


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, first=np.ones((30, 40)), second=np.arange(2000, dtype=">i4"))


def packed_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, first=np.ones((30, 40)))


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)


def text(path: Path) -> None:
    path.write_text("the same again, " * 500)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(10_001))


#: By name of the file: who makes it, and what kind it is.
MAKERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "model.safetensors": (safetensors, "safetensors"),
    "checkpoint.pt": (checkpoint, "torch"),
    "old.bin": (old_checkpoint, "other"),
    "one.npy": (array, "npy"),
    "some.npz": (arrays, "npz"),
    "packed.npz": (packed_arrays, "other"),
    "objects.npy": (objects, "other"),
    "read.me": (text, "other"),
    "nothing": (nothing, "other"),
    "noise.bin": (noise, "other"),
}


def make_all(folder: Path) -> Path:
    """A folder of all of them, some in a folder inside."""
    (folder / "inside").mkdir(parents=True)
    for number, (name, (make, _)) in enumerate(MAKERS.items()):
        make(folder / ("inside" if number % 3 == 2 else ".") / name)
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
