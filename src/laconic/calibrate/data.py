"""Evaluation and calibration data from files: text, labelled sentences, labelled images."""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.errors import DataError

MAX_CONTEXT = 2048
MAX_SENTENCE = 128  # tokens of a labelled sentence
CHARACTERS_A_TOKEN, MARGIN = 5, 64  # a first guess; tokens before a cut that are left out
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Labelled:
    """A classification set.

    Attributes:
        inputs: the model's inputs by argument name, first dimension the example.
        labels: (N,) class numbers.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Labelled":
        """The first `count` examples."""
        return Labelled({k: v[:count] for k, v in self.inputs.items()}, self.labels[:count])

    def batches(self, size: int) -> "Iterator[Labelled]":
        """Runs of `size` examples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Labelled({k: v[part] for k, v in self.inputs.items()}, self.labels[part])


def read_text(path: Path) -> str:
    """A text file, or all `*.txt` of a folder one after the other.

    Raises:
        DataError: it is not there, empty, or no UTF-8 text.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    try:
        text = "".join(file.read_text(encoding="utf-8") for file in files)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected text, or a folder of *.txt") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise DataError(f"{path}: there is no text in it")
    return text


def windows(text: str, tokenizer: Any, context: int, limit: int | None = None) -> Tensor:
    """(N, T) token windows of min(context, 2048) without overlap and without BOS; the tail is dropped.

    Args:
        text: any length.
        tokenizer: of the model.
        context: tokens that the model takes.
        limit: so many windows are enough; no more text is tokenized than they need.

    Raises:
        DataError: the text is shorter than one window.
    """
    length = min(context, MAX_CONTEXT)
    tokens = _tokens(text, tokenizer, None if limit is None else limit * length)
    if len(tokens) < length:
        raise DataError(
            f"the text has {len(tokens)} tokens, one window of this model needs {length}: give more"
        )
    return tokens[: len(tokens) // length * length].view(-1, length)[:limit]


def _tokens(text: str, tokenizer: Any, enough: int | None) -> Tensor:
    """The tokens of `text`; of as much of its beginning as gives `enough`, if that is given.

    The beginning ends at a line's end, and its last tokens are left out: no token of the whole text
    straddles what is kept.
    """
    size = len(text) if enough is None else CHARACTERS_A_TOKEN * enough
    while size < len(text):
        end = text.rfind("\n", 0, size) + 1 or size
        tokens = tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"]
        if enough is not None and len(tokens) >= enough + MARGIN:
            return torch.tensor(tokens[:enough], dtype=torch.long)
        size *= 2
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(encoded, dtype=torch.long)


def read_sentences(path: Path, tokenizer: Any, limit: int = MAX_SENTENCE) -> Labelled:
    """`sentence TAB label` lines, a heading line allowed.

    Raises:
        DataError: no such file, no rows, or a row of another form (its line is named).
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected `sentence TAB label` lines: {error}") from error
    if rows and rows[0] and not rows[0][-1].strip().lstrip("-").isdigit():
        rows = rows[1:]
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not row[1].strip().isdigit():
            raise DataError(
                f"{path}, row {number}: expected `sentence TAB label`, found {row!r:.80}"
            )
    if not rows:
        raise DataError(f"{path}: there are no rows in it")
    try:
        encoded = tokenizer(
            [row[0] for row in rows],
            padding=True, truncation=True, max_length=limit, return_tensors="pt",
        )  # fmt: skip
    except ValueError as error:  # one without a token for padding
        raise DataError(
            f"{path}: the model's tokenizer cannot make a batch of its sentences: {error}"
        ) from error
    inputs = {k: v for k, v in encoded.items() if k in ("input_ids", "attention_mask")}
    return Labelled(inputs, torch.tensor([int(row[1]) for row in rows]))


def read_images(
    path: Path, size: int, mean: tuple[float, ...], std: tuple[float, ...], limit: int | None = None
) -> Labelled:
    """Images filed as `class/name.jpg` in a tar or a folder; classes numbered in sorted order.

    Args:
        path: the tar or folder.
        size: edge length that the model takes; images are resized to it.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divided by.
        limit: read only so many, spread evenly over the set.

    Raises:
        DataError: there are none, or one cannot be decoded (it is named).
    """
    from PIL import Image, UnidentifiedImageError

    found = dict(_image_files(path))
    if not found:
        raise DataError(f"{path}: expected images filed as class/name.jpg in a folder or tar")
    names = list(found)
    classes = {name: i for i, name in enumerate(sorted({Path(n).parent.name for n in names}))}
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    pixels = np.empty((len(names), 3, size, size), np.float32)
    for i, name in enumerate(names):
        try:
            image: Any = Image.open(io.BytesIO(found[name])).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path}: {name} cannot be decoded: {error}") from error
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    shape = (1, 3, 1, 1)
    pixels = (pixels - np.reshape(mean, shape)) / np.reshape(std, shape)
    labels = torch.tensor([classes[Path(name).parent.name] for name in names])
    return Labelled({"pixel_values": torch.from_numpy(pixels.astype(np.float32))}, labels)


def image_statistics(folder: Path | None, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that a model was trained with.

    Those of its `preprocessor_config.json`; else CIFAR's for 32 x 32 inputs, ImageNet's otherwise.
    """
    file = None if folder is None else folder / "preprocessor_config.json"
    if file is not None and file.is_file():
        config = json.loads(file.read_text())
        if "image_mean" in config and "image_std" in config:
            return tuple(config["image_mean"]), tuple(config["image_std"])
    return (CIFAR_MEAN, CIFAR_STD) if size == 32 else (IMAGENET_MEAN, IMAGENET_STD)


def _image_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.glob("*/*")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield f"{file.parent.name}/{file.name}", file.read_bytes()
    elif path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                data = archive.extractfile(member) if member.isfile() else None
                if data is not None and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    yield member.name, data.read()
