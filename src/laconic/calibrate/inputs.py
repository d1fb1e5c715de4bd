"""What a model can be given: text for language models, labelled sentences or images for classifiers."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from laconic.calibrate.data import (
    MAX_SENTENCE,
    Labelled,
    image_statistics,
    read_images,
    read_sentences,
    read_text,
    windows,
)
from laconic.errors import DataError, UsageError

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Subject:
    """A model as its data sees it.

    Attributes:
        model: its modules; weights are not needed.
        folder: where its tokenizer and image statistics are; None for a module in memory.
    """

    model: nn.Module
    folder: Path | None

    @property
    def config(self) -> Any:
        """Of transformers; None for a plain module."""
        return getattr(self.model, "config", None)

    @cached_property
    def takes(self) -> str:
        """`images`, `sentences` or `text`."""
        kind = type(self.model).__name__
        if "ForImageClassification" in kind or self.config is None:
            return "images"
        return "sentences" if "ForSequenceClassification" in kind else "text"

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        names = ("max_position_embeddings", "n_positions")
        found = [getattr(self.config, name, None) for name in names]
        return next((length for length in found if length), DEFAULT_CONTEXT)

    @property
    def image_size(self) -> int:
        """Edge length; a plain module's is taken to be CIFAR's."""
        return int(getattr(self.config, "image_size", 32))

    @property
    def image_argument(self) -> str:
        """The name under which a model takes images."""
        return "pixel_values"

    def tokenizer(self) -> Any:
        """The model's; raises `DataError` if it cannot be loaded, `UsageError` if there is no folder."""
        from transformers import AutoTokenizer

        if self.folder is None:
            raise UsageError(
                "a module in memory has no tokenizer: give windows (N, T) of token numbers"
            )
        try:
            return AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise DataError(f"{self.folder}: no tokenizer to read text with: {reason}") from error


def read_inputs(data: Any, subject: Subject, limit: int | None = None) -> Tensor | Labelled:
    """Token windows (N, T) for a language model, a labelled set for a classifier.

    Args:
        data: a path; or windows or a labelled set, which are taken as they are.
        subject: what the data is for.
        limit: how many are wanted; images beyond it are not read.

    Raises:
        DataError: no such file, nothing in it, or it is of another kind.
    """
    if isinstance(data, Tensor | Labelled):
        return data
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if subject.takes == "images":
        size = subject.image_size
        folder = None if subject.config is None else subject.folder
        return read_images(path, size, *image_statistics(folder, size), limit)
    tokenizer = subject.tokenizer()
    if subject.takes == "sentences":
        longest = min(
            MAX_SENTENCE, getattr(subject.config, "max_position_embeddings", MAX_SENTENCE)
        )
        return read_sentences(path, tokenizer, longest)
    return windows(read_text(path), tokenizer, subject.context, limit)
