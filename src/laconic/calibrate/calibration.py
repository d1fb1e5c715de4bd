"""Calibration sequences: from files, folders, tensors or iterables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from laconic.calibrate.data import Labelled
from laconic.calibrate.inputs import Subject, read_inputs
from laconic.errors import DataError
from laconic.tensors.dtypes import to_raw

FITTED = 128  # windows that methods are fitted to
HELD_OUT = 32  # windows after them, on which layers are measured


@dataclass(frozen=True)
class Calibration:
    """What a model is shown while it is compressed.

    Attributes:
        inputs: arguments by name, one sequence each (batch dimension 1, no padding).
        targets: class of each sequence, for losses of classifiers; None for language models, whose
            targets are their inputs.
        fitted: numbers of the sequences that methods are fitted to.
        held_out: numbers of those that layers are measured on.
    """

    inputs: tuple[dict[str, Tensor], ...]
    targets: Tensor | None
    fitted: range
    held_out: range

    @property
    def fingerprint(self) -> str:
        """Of all inputs, so that a run or a file of statistics knows whether it is of the same data."""
        digest = xxhash.xxh3_128()
        for given in self.inputs:
            for name, value in given.items():
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(to_raw(value).data)
        digest.update(f"{self.fitted} {self.held_out}".encode())
        return digest.hexdigest()


def read_calibration(
    data: Any, subject: Subject, *, fitted: int = FITTED, held_out: int = HELD_OUT
) -> Calibration:
    """Calibration sequences for a model.

    Args:
        data: a text file or a folder of `*.txt` for a language model; `sentence TAB label` lines or
            images for a classifier; token windows (N, T); a `Labelled` set; a `Calibration`; or an
            iterable of these windows (T,), texts, or mappings of arguments.
        subject: what the data is for.
        fitted: how many sequences methods are fitted to, at most.
        held_out: how many of those after them layers are measured on. Where there are too few for
            both, a fifth is held out.

    Raises:
        DataError: there is nothing in it, or it does not suit the model.
    """
    if isinstance(data, Calibration):
        return data
    limit = fitted + held_out
    if isinstance(data, Iterable) and not isinstance(
        data, str | Path | Tensor | Labelled | Mapping
    ):
        sequences, targets = _from_iterable(data, subject, limit), None
    else:
        read = read_inputs(data, subject, limit)
        if isinstance(read, Labelled):
            sequences, targets = _unpadded(read, limit), read.labels[:limit]
        else:
            sequences, targets = [{"input_ids": row[None]} for row in read[:limit]], None
    if not sequences:
        raise DataError("there are no calibration sequences in the data")
    count = len(sequences)
    held = min(held_out, count // 5) if count < limit else held_out
    return Calibration(
        tuple(sequences), targets, range(min(fitted, count - held)), range(count - held, count)
    )


def _unpadded(data: Labelled, limit: int) -> list[dict[str, Tensor]]:
    """Examples one by one, each cut to its own length where a mask says how long it is."""
    sequences = []
    for number in range(min(limit, len(data))):
        row = {name: value[number : number + 1] for name, value in data.inputs.items()}
        mask = row.pop("attention_mask", None)
        if mask is not None:
            length = int(mask.sum())
            row = {name: value[:, :length] for name, value in row.items()}
        sequences.append(row)
    return sequences


def _from_iterable(data: Iterable[Any], subject: Subject, limit: int) -> list[dict[str, Tensor]]:
    sequences: list[dict[str, Tensor]] = []
    for item in data:
        if isinstance(item, Mapping):
            sequences.append({name: torch.as_tensor(value) for name, value in item.items()})
        elif isinstance(item, str):
            tokens = subject.tokenizer()(item, add_special_tokens=False)["input_ids"]
            if tokens:
                sequences.append({"input_ids": torch.tensor([tokens[: subject.context]])})
        else:
            row = torch.as_tensor(item)
            name = "input_ids" if not row.is_floating_point() else subject.image_argument
            sequences.append({name: row[None]})
        if len(sequences) == limit:
            break
    return sequences
