"""Stores beyond one machine: the index in PostgreSQL, the packs in an object store.

SQL is the same as for SQLite, and so are the packs; only who keeps them differs.
"""

import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import sqlalchemy

from laconic.errors import CorruptFile, LaconicError
from laconic.store.database import NOTHING, Row, Values
from laconic.store.packs import FolderPacks, FolderPackWriter, Place

LOCK = 0x1AC0  # of writers: they go one after the other, as in SQLite
TYPES = {"BLOB": "BYTEA"}


class PostgreSQL:
    """A database of PostgreSQL.

    Args:
        url: such as `postgresql://user:password@host/name`.
        schema: statements that make the tables where they are missing.

    Raises:
        LaconicError: it cannot be reached.
    """

    def __init__(self, url: str, schema: Sequence[str]) -> None:
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
        self._local = threading.local()
        try:
            with self.transaction():
                for statement in schema:
                    for ours, theirs in TYPES.items():
                        statement = statement.replace(f" {ours} ", f" {theirs} ")
                        statement = statement.replace(f" {ours},", f" {theirs},")
                    self.run(statement)
        except sqlalchemy.exc.OperationalError as error:
            raise LaconicError(f"the index cannot be reached: {error.orig}") from error

    def rows(self, sql: str, values: Values = NOTHING) -> list[Row]:
        """What a query gives; inside a transaction, or on its own."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            return self._fetch(connection, sql, values)
        with self._engine.connect() as own:
            return self._fetch(own, sql, values)

    def run(self, sql: str, values: Values = NOTHING) -> int:
        """Runs a statement within a transaction; how many rows it touched."""
        return int(self._local.connection.execute(sqlalchemy.text(sql), dict(values)).rowcount)

    def run_many(self, sql: str, values: Iterable[Values]) -> int:
        """The same statement for many values."""
        rows = [dict(row) for row in values]
        if not rows:
            return 0
        return int(self._local.connection.execute(sqlalchemy.text(sql), rows).rowcount)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds the lock of writers until the commit."""
        with self._engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            self._local.connection = connection
            try:
                yield
            finally:
                self._local.connection = None

    @staticmethod
    def _fetch(connection: Any, sql: str, values: Values) -> list[Row]:
        found = connection.execute(sqlalchemy.text(sql), dict(values)).fetchall()
        return [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in found]


class ObjectPacks:
    """Packs in whatever fsspec reaches: S3, Google Cloud Storage, a folder elsewhere.

    A pack is written into a temporary folder of this machine, and sent when it is complete.

    Args:
        url: such as `s3://bucket/folder`.
        options: of the file system, such as `{"endpoint_url": "http://..."}`.

    Raises:
        LaconicError: there is no file system of that name.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise LaconicError(f"{url}: {error}") from error
        self._held = tempfile.TemporaryDirectory(prefix="laconic-packs-")
        self._local = FolderPacks(Path(self._held.name))

    def writer(self) -> "ObjectPackWriter":
        """A new pack."""
        return ObjectPackWriter(self, self._local.writer())

    def read(self, place: Place) -> bytes:
        """An object.

        Raises:
            CorruptFile: the pack ends before.
        """
        path = self._path(place.pack)
        end = place.start + place.length
        blob: bytes = self._files.cat_file(path, start=place.start, end=end)
        if len(blob) < place.length:
            raise CorruptFile(f"{path}: truncated")
        return blob

    def names(self) -> Iterator[tuple[str, float]]:
        """All packs, and when they were written."""
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return
        for entry in self._files.ls(self._root, detail=True):
            name = str(entry["name"]).rpartition("/")[2]
            written = entry.get("LastModified") or entry.get("mtime") or entry.get("created")
            moment = written.timestamp() if isinstance(written, datetime) else float(written or 0)
            yield name, moment

    def remove(self, name: str) -> None:
        """Deletes a pack, if it is there."""
        if self._files.exists(self._path(name)):
            self._files.rm_file(self._path(name))

    def send(self, name: str, path: Path) -> None:
        """Puts a complete pack where others see it."""
        self._files.makedirs(self._root, exist_ok=True)
        self._files.put_file(str(path), self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class ObjectPackWriter:
    """A pack that is being written, on its way to an object store."""

    def __init__(self, packs: ObjectPacks, local: FolderPackWriter) -> None:
        self._packs, self._local = packs, local
        self.name = local.name

    def add(self, digest: bytes, blob: bytes) -> Place:
        """Appends an object."""
        return self._local.add(digest, blob)

    def close(self) -> int:
        """Sends the pack; its bytes."""
        size = self._local.close()
        self._packs.send(self.name, self._local.path)
        self._local.path.unlink()
        return size

    def abandon(self) -> None:
        """Leaves nothing, also where it was sent before."""
        self._local.abandon()
        self._packs.remove(self.name)
