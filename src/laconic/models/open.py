"""`open_source`: whatever the user named, as a `ModelSource`."""

from pathlib import Path

from torch import nn

from laconic.errors import UnsupportedModel
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.memory import MODULE_CONFIG, MemorySource, from_factory, is_factory
from laconic.models.source import ModelSource


def open_source(model: "str | Path | nn.Module | ModelSource") -> ModelSource:
    """A directory, `package.module:factory[@path]`, a module or a source, as a source.

    Raises:
        UnsupportedModel: it is none of them; the message says what was looked for.
    """
    if isinstance(model, ModelSource):
        return model
    if isinstance(model, nn.Module):
        return MemorySource(model)
    folder = Path(model)
    if (folder / MODULE_CONFIG).is_file():
        raise UnsupportedModel(f"{folder} is compressed already; start from the dense model")
    if folder.is_dir():
        return HuggingFaceSource(folder)
    if is_factory(str(model)):
        return from_factory(str(model))
    what = "a file" if folder.is_file() else "not there"
    raise UnsupportedModel(
        f"{model} is {what}: expected a directory with config.json and *.safetensors, "
        "or package.module:factory[@path]"
    )
