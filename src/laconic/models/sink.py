"""Where results go: the protocol, and `MemorySink`, which changes a model in place."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from laconic.tensors.modules import CompressedEmbedding, TiedEmbedding, TiedLinear
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record


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

    def checkpoint(self, progress: dict[str, Any]) -> None:  # noqa: B027
        """Makes what was put so far safe; `progress` is what `resumed` gives after a crash."""

    def resumed(self) -> dict[str, Any]:
        """What the last `checkpoint` of an interrupted run said; empty for a new run."""
        return {}

    def restart(self) -> None:  # noqa: B027
        """Forgets what an interrupted run had finished."""

    def states_folder(self) -> Path | None:
        """Where intermediate results may lie while the run lasts; None to keep them in memory."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class NoSink(Sink):
    """Keeps nothing: for runs that only look at a model."""

    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        return dict.fromkeys(slots, 0)

    def put_tensor(self, name: str, tensor: Tensor) -> None:
        """Nothing to do."""

    def keep_module(self, path: str, slots: Mapping[str, Record]) -> None:
        """Nothing to do."""


class MemorySink(Sink):
    """Puts compressed modules into `model`, in place; after a failure it is as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self._changed: list[
            tuple[Tensor, Tensor]
        ] = []  # tensors that were written to, as they were

    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        device = self.model.get_submodule(path).get_parameter(next(iter(slots))).device
        replace_module(self.model, path, slots).to(device)
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
        for tensor, before in self._changed:
            tensor.copy_(before)

    def put_tensor(self, name: str, tensor: Tensor) -> None:
        """Writes it over the model's where it differs: norms may have been trained, or measured again."""
        own = self.model.state_dict().get(name)  # shares memory with the model
        if own is not None and not torch.equal(own, tensor.to(own)):
            self._changed.append((own, own.clone()))
            own.copy_(tensor)

    def keep_module(self, path: str, slots: Mapping[str, Record]) -> None:
        """Nothing to do: the model has it."""


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
