"""What the verbs share: options, printing, progress, quiet libraries."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from laconic.words import plural, size

__all__ = [
    "Bar", "Data", "Device", "Json", "Trust", "bar", "console", "messages", "plural", "print_json",
    "quiet_libraries", "size",
]  # fmt: skip

T = TypeVar("T")

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")
]
Data = Annotated[Path, typer.Option(help="Text file or folder of *.txt; for classifiers `sentence TAB label` lines, or images filed as class/name.jpg in a folder or tar.")]  # fmt: skip
Trust = Annotated[bool, typer.Option("--trust", help="Import the code outside laconic that a model directory names as its factory.")]  # fmt: skip
Device = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")]

console = Console(highlight=False)
messages = Console(stderr=True, highlight=False)


class Bar:
    """A progress bar on standard error; nothing where that is no terminal."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yields `items`."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining()
        with Progress(
            *columns, console=messages, transient=True, disable=not messages.is_terminal
        ) as bar:
            yield from bar.track(items, description=what, total=total)


def quiet_libraries() -> None:
    """Keeps other libraries' bars and notes off the terminal, and off the network."""
    import os
    import warnings

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")


def print_json(value: dict[str, Any]) -> None:
    """JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def bar(share: float, width: int = 30) -> str:
    """A bar of `width` cells, filled for `share` in [0, 1]."""
    filled = round(min(1.0, max(0.0, share)) * width)
    return "━" * filled + "[dim]" + "─" * (width - filled) + "[/dim]"
