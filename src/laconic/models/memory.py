"""Models that are in memory already, and plain modules named by a factory."""

import importlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from laconic.errors import LaconicError, UnsupportedModel, UsageError
from laconic.models.source import ModelSource
from laconic.tensors.modules import CompressedModule

MODULE_CONFIG = "laconic_module.json"  # what stands in for config.json where there is none


class MemorySource(ModelSource):
    """A model in memory. It is not changed; results are put into it only by a `MemorySink`.

    Raises:
        UnsupportedModel: it is compressed already.

    Args:
        model: any module.
        name: for reports.
        factory: `package.module:factory` that builds the same model, needed to save and reload a
            plain module (a transformers model brings its own configuration).
    """

    def __init__(self, model: nn.Module, name: str = "", factory: str | None = None) -> None:
        if any(isinstance(module, CompressedModule) for module in model.modules()):
            raise UnsupportedModel(
                f"{name or type(model).__name__} is compressed already; start from the dense model"
            )
        self.skeleton, self.folder = model, None
        self.name = name or type(model).__name__
        self.factory = factory
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        self._state = {k: v for k, v in model.state_dict(keep_vars=True).items() if k not in tied}

    def sizes(self) -> dict[str, int]:
        return {name: tensor.nbytes for name, tensor in self._state.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self._state[name].detach() for name in names}

    def save_config(self, folder: Path, quantization: dict[str, Any]) -> None:
        pretrained: Any = getattr(self.skeleton, "config", None)
        if hasattr(pretrained, "to_json_string"):
            config = json.loads(pretrained.to_json_string())
            config["architectures"] = [type(self.skeleton).__name__]
            config["quantization_config"] = quantization
            config["dtype"] = str(next(self.skeleton.parameters()).dtype).removeprefix("torch.")
            (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        elif self.factory is not None:
            config = {"factory": self.factory, "quantization_config": quantization}
            (folder / MODULE_CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        else:
            raise UsageError(
                f"{self.name} is a plain module: name the factory that builds it "
                "('package.module:factory') so that the result can be loaded again"
            )


def is_factory(name: str) -> bool:
    """Whether `name` looks like `package.module:factory` or `package.module:factory@path`."""
    head = name.partition("@")[0]
    return (
        ":" in head
        and "/" not in head
        and all(p.isidentifier() for p in head.replace(":", ".").split("."))
    )


def from_factory(name: str) -> MemorySource:
    """The model that `package.module:factory@path` builds: `factory(path)`, or `factory()`."""
    factory, _, path = name.partition("@")
    model = call_factory(factory, path or None)
    return MemorySource(model, name, factory)


def call_factory(factory: str, path: str | None = None) -> nn.Module:
    """Imports and calls `package.module:factory`; the result is in evaluation mode.

    Raises:
        UnsupportedModel: it cannot be imported, fails, or returns no module.
    """
    module_name, _, function = factory.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise UnsupportedModel(f"cannot import the factory {factory!r}: {error}") from error
    if path is not None and not inspect.signature(build).parameters:
        raise UsageError(f"{factory} takes no path, found {path!r} after the @")
    try:
        model = build(path) if path is not None else build()
    except LaconicError:
        raise
    except Exception as error:  # whatever code outside laconic may raise
        raise UnsupportedModel(f"the factory {factory!r} failed: {error!r}") from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{factory} returned a {type(model).__name__}, not a torch module")
    return model.eval()
