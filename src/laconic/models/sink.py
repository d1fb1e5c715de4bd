"""Where results go: `MemorySink` changes a model in place, `DirectorySink` streams to files.

A directory appears under its name only when it is complete; until then, and after any failure,
there is at most a hidden temporary one, which is removed.
"""

import errno
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from laconic.errors import LaconicError, OutputExists
from laconic.tensors.modules import CompressedEmbedding, TiedEmbedding, TiedLinear
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record, encode

SHARD_BYTES = 2 << 30


class Sink(ABC):
    """Takes the parts of a compressed model, one block at a time."""

    @abstractmethod
    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        """Takes a compressed module; returns the stored bytes of each slot."""

    @abstractmethod
    def put_tensor(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor that stays as it is."""

    @abstractmethod
    def keep_module(self, path: str, slots: Mapping[str, Record]) -> None:
        """Takes a module whose weights stay as they are, but may be stored smaller."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class MemorySink(Sink):
    """Puts compressed modules into `model`, in place; after a failure it is as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._tied = dict(getattr(model, "all_tied_weights_keys", None) or {})

    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        replace_module(self.model, path, slots)
        tie_heads(self.model)
        return {name: record.weight.stored_bytes for name, record in slots.items()}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            if module is not self._modules[path]:
                self.model.set_submodule(path, self._modules[path])
        if self._tied:
            self.model.all_tied_weights_keys = self._tied  # type: ignore[assignment]

    def put_tensor(self, name: str, tensor: Tensor) -> None:
        """Nothing to do: the model has it."""

    def keep_module(self, path: str, slots: Mapping[str, Record]) -> None:
        """Nothing to do: the model has it."""


class DirectorySink(Sink):
    """Streams to a directory of safetensors shards, renamed into place when complete.

    Args:
        out: the directory to make.
        save_config: writes everything but the weights into a folder, given the compressed modules.
        overwrite: whether an existing `out` is replaced; only once the new one is complete.
        shard_bytes: size from which a new shard is begun.

    Raises:
        OutputExists: `out` is there and `overwrite` is false.
    """

    def __init__(
        self, out: Path, save_config: Callable[[Path, list[str]], None],
        *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES,
    ) -> None:  # fmt: skip
        if out.exists() and not overwrite:
            raise OutputExists(f"{out} exists; choose another --out or give --overwrite")
        self.out = out
        self.work = out.parent / f".{out.name}.partial-{os.getpid()}"
        self._save_config = save_config
        self._shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._modules: list[str] = []
        self._stored: int | None = None

    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        self._modules.append(path)
        sizes = {}
        for name, record in slots.items():
            blob = encode(record)
            sizes[name] = len(blob)
            self.put_tensor(
                f"{path}.{name}", torch.from_numpy(np.frombuffer(blob, np.uint8).copy())
            )
        return sizes

    def keep_module(self, path: str, slots: Mapping[str, Record]) -> None:
        self.put_module(path, slots)

    def put_tensor(self, name: str, tensor: Tensor) -> None:
        self._pending[name] = tensor.cpu().contiguous()
        if sum(t.nbytes for t in self._pending.values()) >= self._shard_bytes:
            self._flush()

    def __enter__(self) -> Self:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.work.mkdir()
            try:
                self._save_config(self.work, [])  # what cannot be saved is known before the work
            except BaseException:
                shutil.rmtree(self.work, ignore_errors=True)
                raise
        except OSError as error:
            raise _explained(error, self.out) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self._save_config(self.work, self._modules)
                self._publish()
        except OSError as problem:
            raise _explained(problem, self.out) from problem
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
        if isinstance(error, OSError):
            raise _explained(error, self.out) from error

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not self._pending:
            return
        number = len(self._shards) + 1
        tensors, storages = {}, set()
        for name, tensor in self._pending.items():  # safetensors stores no aliases
            pointer = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if pointer in storages else tensor
            storages.add(pointer)
        try:
            save_file(tensors, self._shard(number), metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the operating system's error as text
            raise LaconicError(
                f"cannot write {self.out}: {error}; nothing was left behind"
            ) from error
        self._shards.append(list(self._pending))
        self._pending = {}

    def _shard(self, number: int, total: int | None = None) -> Path:
        if total is None:
            return self.work / f"shard-{number}.tmp"
        if total == 1:
            return self.work / "model.safetensors"
        return self.work / f"model-{number:05d}-of-{total:05d}.safetensors"

    def finish(self) -> int:
        """Completes the weight files and returns their bytes; leaving the block publishes them."""
        if self._stored is not None:
            return self._stored
        self._flush()
        total = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            path = self._shard(number, total)
            self._shard(number).rename(path)
            weight_map |= dict.fromkeys(names, path.name)
        if total > 1:
            size = sum(p.stat().st_size for p in self.work.glob("*.safetensors"))
            index: dict[str, Any] = {"metadata": {"total_size": size}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.work / "model.safetensors.index.json").write_text(text)
        self._stored = sum(path.stat().st_size for path in self.work.glob("*.safetensors"))
        return self._stored

    def _publish(self) -> None:
        """Renames the finished directory into place; an old one goes only afterwards."""
        old = self.out.parent / f".{self.out.name}.old-{os.getpid()}"
        if self.out.exists():
            self.out.rename(old)
        try:
            self.work.rename(self.out)
        except BaseException:
            if old.exists():
                old.rename(self.out)
            raise
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)


def tie_heads(model: nn.Module) -> None:
    """Heads and embeddings tied to one that is compressed now compute with the compressed table."""
    for tied, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        path, _, slot = tied.rpartition(".")
        embedding = model.get_submodule(source.rpartition(".")[0])
        if slot != "weight" or not isinstance(embedding, CompressedEmbedding):
            continue
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear):
            model.set_submodule(path, TiedLinear(embedding, module.bias))
        elif isinstance(module, nn.Embedding):
            model.set_submodule(path, TiedEmbedding(embedding))
        else:
            continue  # transformers will refuse to tie it, which is better than a random weight
        model.all_tied_weights_keys.pop(tied)  # type: ignore[union-attr, operator]


def _explained(error: OSError, out: Path) -> LaconicError:
    if error.errno == errno.ENOSPC:
        return LaconicError(f"cannot write {out}: the disk is full; nothing was left behind")
    return LaconicError(f"cannot write {out}: {error.strerror or error}; nothing was left behind")
