"""Nested values with tensors in them, in one checked file: what `torch.save` does, without pickle."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from laconic.coding.framing import IndexedReader, IndexedWriter
from laconic.errors import CorruptFile, UsageError
from laconic.files import whole_file
from laconic.tensors.dtypes import from_raw, name_of, to_raw

FORMAT = 1
SCALARS = (int, float, str, bool, type(None))


def write_values(path: Path, value: Any) -> None:
    """Writes dictionaries, lists and tuples of numbers, text and tensors.

    The file appears complete or not at all; every part of it carries a checksum.

    Args:
        path: its folder is made where it is missing.
        value: keys of dictionaries are numbers or text.

    Raises:
        UsageError: something else is in it.
    """
    with (
        whole_file(path) as temporary, temporary.open("wb") as file, IndexedWriter(file) as writer,
    ):  # fmt: skip
        writer.close(format=FORMAT, value=_put(value, writer, [0]))


def read_values(path: Path, what: str) -> Any:
    """What `write_values` wrote; tensors are on the CPU.

    Args:
        path: of the file.
        what: it should be, for the message.

    Raises:
        CorruptFile: it is damaged, or no such file.
    """
    try:
        reader = IndexedReader(path)
        if reader.metadata.get("format") != FORMAT:
            raise CorruptFile("of another version")
        return _take(reader.metadata["value"], reader)
    except CorruptFile as error:
        raise CorruptFile(f"{path}: no {what}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptFile(f"{path}: no {what}: {error!r}") from error


def _put(value: Any, writer: IndexedWriter, count: list[int]) -> Any:
    """`value` as JSON; tensors become sections, whose names stand for them."""
    if isinstance(value, Tensor):
        name = str(count[0])
        count[0] += 1
        writer.add(name, to_raw(value).data, dtype=name_of(value.dtype), shape=list(value.shape))
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[_scalar(key), _put(item, writer, count)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_put(item, writer, count) for item in value]}
    return _scalar(value)


def _take(value: Any, reader: IndexedReader) -> Any:
    if not isinstance(value, dict):
        return _scalar(value)
    ((kind, content),) = value.items()
    if kind == "tensor":
        info = reader.info(content)
        raw = np.frombuffer(reader.read(content), np.uint8)
        return from_raw(raw, info["dtype"], tuple(info["shape"]))
    if kind == "dict":
        return {key: _take(item, reader) for key, item in content}
    items = [_take(item, reader) for item in content]
    return {"list": list, "tuple": tuple}[kind](items)


def _scalar(value: Any) -> Any:
    if type(value) not in SCALARS:
        raise UsageError(
            f"a {type(value).__name__} cannot be written: give numbers, text, tensors, or lists and "
            "dictionaries of them"
        )
    return value
