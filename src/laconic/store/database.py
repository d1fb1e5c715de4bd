"""One SQL for every database: named parameters, one transaction at a time, one connection a thread.

SQLite needs nothing to be started. It is opened in WAL mode, in which readers never wait, and writers one
for the other; a transaction that was not committed when its process died never was.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from laconic.errors import CorruptFile

Row = tuple[Any, ...]
Values = Mapping[str, Any]
NOTHING: Values = MappingProxyType({})
WAIT = 600.0  # seconds that a writer waits for others


class Database(Protocol):
    """What an index needs of a database."""

    def rows(self, sql: str, values: Values = NOTHING) -> list[Row]:
        """What a query gives; inside a transaction, or on its own."""
        ...

    def run(self, sql: str, values: Values = NOTHING) -> int:
        """Runs a statement within a transaction; how many rows it touched."""
        ...

    def run_many(self, sql: str, values: Iterable[Values]) -> int:
        """The same statement for many values."""
        ...

    def transaction(self) -> Any:
        """A `with` block of statements that all count, or none; writers wait for each other."""
        ...


class SQLite:
    """A database in one file.

    Args:
        path: of the file; it is made where it is missing.
        schema: statements that make the tables where they are missing.
    """

    def __init__(self, path: Path, schema: Sequence[str]) -> None:
        self._path, self._local = path, threading.local()
        with self.transaction():
            for statement in schema:
                self.run(statement)

    @property
    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = sqlite3.connect(self._path, timeout=WAIT, isolation_level=None)
            try:
                found.execute("PRAGMA journal_mode=WAL")
                found.execute("PRAGMA synchronous=FULL")  # a commit is on the disk
            except sqlite3.DatabaseError as error:
                found.close()
                raise CorruptFile(f"{self._path}: no SQLite database: {error}") from error
            self._local.connection = found
        return found

    def rows(self, sql: str, values: Values = NOTHING) -> list[Row]:
        """What a query gives."""
        return self._connection.execute(sql, dict(values)).fetchall()

    def run(self, sql: str, values: Values = NOTHING) -> int:
        """Runs a statement; how many rows it touched."""
        return self._connection.execute(sql, dict(values)).rowcount

    def run_many(self, sql: str, values: Iterable[Values]) -> int:
        """The same statement for many values."""
        return self._connection.executemany(sql, map(dict, values)).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds the lock of writers from the start, so that what is read stays true until the commit."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
