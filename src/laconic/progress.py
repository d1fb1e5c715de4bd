"""How long jobs say where they are: one small protocol, silent by default."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Something that can follow a loop: a progress bar, a log, or nothing."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yields `items`, showing how far it has come with `what`."""
        ...


class Silent:
    """Shows nothing."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yields `items`."""
        yield from items


SILENT = Silent()
