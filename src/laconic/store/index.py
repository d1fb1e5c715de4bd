"""What a store knows: its models, their objects, and where each object is.

    models    name, revision -> manifest (an object)
    packs     name -> size, and while it is being written, by whom
    objects   digest -> place, size, base, and how many manifests and other objects need it
    files     digest -> size, and how many models have it: what `stat` tells, no more

An object that nothing needs stays until it is collected, some time after: someone may be adding what needs it.
"""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from laconic.store.database import Database
from laconic.store.packs import Place

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS objects (
        digest BLOB PRIMARY KEY, pack TEXT NOT NULL, start BIGINT NOT NULL, length BIGINT NOT NULL,
        size BIGINT NOT NULL, base BLOB, depth INTEGER NOT NULL, needed INTEGER NOT NULL,
        dead DOUBLE PRECISION)""",
    "CREATE INDEX IF NOT EXISTS objects_pack ON objects (pack)",
    "CREATE INDEX IF NOT EXISTS objects_dead ON objects (dead) WHERE dead IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS packs (
        name TEXT PRIMARY KEY, size BIGINT NOT NULL, owner TEXT NOT NULL, created DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS models (
        name TEXT NOT NULL, revision TEXT NOT NULL, created DOUBLE PRECISION NOT NULL, manifest BLOB NOT NULL,
        length BIGINT NOT NULL, files INTEGER NOT NULL, size BIGINT NOT NULL, base TEXT,
        signature BLOB NOT NULL, sketch BLOB NOT NULL, PRIMARY KEY (name, revision))""",
    "CREATE INDEX IF NOT EXISTS models_signature ON models (signature)",
    """CREATE TABLE IF NOT EXISTS files (
        digest BLOB PRIMARY KEY, size BIGINT NOT NULL, needed INTEGER NOT NULL)""",
)

OPEN = -1  # size of a pack that is being written
#: What becomes smaller, step by step: words for people, and what `Index.totals` calls it.
STEPS = {
    "as files": "raw", "equal files once": "files", "equal tensors once": "tensors",
    "differences and entropy coding": "stored",
}  # fmt: skip


class Known(NamedTuple):
    """An object of the index.

    Attributes:
        digest: its name.
        place: where it is.
        size: bytes that it holds.
        base: digest of what it is the difference from, if it is one.
        depth: how many bases have to be read before it.
    """

    digest: bytes
    place: Place
    size: int
    base: bytes | None = None
    depth: int = 0


class Model(NamedTuple):
    """A revision of a model.

    Attributes:
        name: such as `someone/some-model`.
        revision: from its manifest: equal files, equal revision.
        created: seconds since 1970.
        manifest: digest of the object that lists its files.
        length: bytes of the manifest.
        files: how many.
        size: bytes of its files.
        base: name and revision of the model that it was found to be near, if any.
        signature: of the names, dtypes and shapes of its tensors.
        sketch: some of its bits, to compare it with others.
    """

    name: str
    revision: str
    created: float
    manifest: bytes
    length: int
    files: int
    size: int
    base: str | None
    signature: bytes
    sketch: bytes


class Vanished(Exception):
    """An object that was known has been collected meanwhile."""


class Index:
    """The tables of a store.

    Args:
        database: whose tables are those of `SCHEMA`.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    def find(self, digest: bytes) -> Known | None:
        """The object of that name."""
        rows = self._db.rows(
            "SELECT pack, start, length, size, base, depth FROM objects WHERE digest = :digest",
            {"digest": digest},
        )
        return None if not rows else _known(digest, *rows[0])

    def models(self, name: str | None = None) -> list[Model]:
        """All revisions, or those of one name; new ones last."""
        where = "" if name is None else "WHERE name = :name"
        rows = self._db.rows(
            f"SELECT {', '.join(Model._fields)} FROM models {where} ORDER BY created, name",
            {} if name is None else {"name": name},
        )
        return [Model(*row) for row in rows]

    def alike(self, signature: bytes) -> list[Model]:
        """Models whose tensors have the same names and shapes."""
        rows = self._db.rows(
            f"SELECT {', '.join(Model._fields)} FROM models WHERE signature = :signature "
            "ORDER BY created",
            {"signature": signature},
        )
        return [Model(*row) for row in rows]

    def begin_pack(self, name: str, owner: str) -> None:
        """Announces a pack, before anything of it is written."""
        with self._db.transaction():
            self._db.run(
                "INSERT INTO packs (name, size, owner, created) VALUES (:name, :size, :owner, :now)",
                {"name": name, "size": OPEN, "owner": owner, "now": time.time()},
            )

    def open_packs(self) -> list[tuple[str, str, float]]:
        """(name, owner, since when) of packs that are being written, or were when their writer died."""
        rows = self._db.rows(
            "SELECT name, owner, created FROM packs WHERE size = :open", {"open": OPEN}
        )
        return [(name, owner, since) for name, owner, since in rows]

    def add(
        self, model: Model, objects: Sequence[Known], packs: Iterable[tuple[str, int]],
        needed: Iterable[bytes], files: Iterable[tuple[bytes, int]],
    ) -> bool:  # fmt: skip
        """Adds a model and its new objects, all or nothing; False, and nothing, if it is there already.

        Args:
            model: its manifest is among the objects, or known.
            objects: that were written for it.
            packs: (name, bytes) of what they are in.
            needed: digests of all objects of the manifest, and its own, each once.
            files: (digest, bytes) of its files.

        Raises:
            Vanished: an object that was known before, or a pack, is not there any more; nothing was added.
        """
        with self._db.transaction():
            if self._db.rows(
                "SELECT 1 FROM models WHERE name = :name AND revision = :revision",
                {"name": model.name, "revision": model.revision},
            ):
                return False
            for name, size in packs:
                self._close_pack(name, size)
            for known in objects:
                self._insert(known)
            for digest in needed:
                self._need(digest)
            columns = ", ".join(Model._fields)
            values = ", ".join(f":{field}" for field in Model._fields)
            self._db.run(f"INSERT INTO models ({columns}) VALUES ({values})", model._asdict())
            self._db.run_many(
                "INSERT INTO files (digest, size, needed) VALUES (:digest, :size, 1) "
                "ON CONFLICT (digest) DO UPDATE SET needed = files.needed + 1",
                [{"digest": digest, "size": size} for digest, size in files],
            )
        return True

    def remove(self, model: Model, needed: Iterable[bytes], files: Iterable[bytes]) -> bool:
        """Forgets a model; its objects stay until they are collected. False if it was not there."""
        with self._db.transaction():
            key = {"name": model.name, "revision": model.revision}
            if not self._db.run(
                "DELETE FROM models WHERE name = :name AND revision = :revision", key
            ):
                return False
            for digest in needed:
                self._release(digest, time.time())
            for digest in files:
                self._db.run(
                    "UPDATE files SET needed = needed - 1 WHERE digest = :digest",
                    {"digest": digest},
                )
            self._db.run("DELETE FROM files WHERE needed = 0")
        return True

    def collect(self, before: float) -> list[bytes]:
        """Forgets objects that nothing has needed since `before`; their digests.

        What only they needed has not been needed for as long: the next call forgets that.
        """
        with self._db.transaction():
            rows = self._db.rows(
                "SELECT digest, base, dead FROM objects WHERE dead IS NOT NULL AND dead <= :before "
                "AND needed = 0",
                {"before": before},
            )
            for digest, base, dead in rows:
                self._db.run("DELETE FROM objects WHERE digest = :digest", {"digest": digest})
                if base is not None:
                    self._release(base, dead)
        return [row[0] for row in rows]

    def packs(self) -> list[tuple[str, int, int]]:
        """(name, bytes, bytes of objects in it) of every pack that is complete."""
        return [
            (name, size, int(live))
            for name, size, live in self._db.rows(
                "SELECT packs.name, packs.size, COALESCE(SUM(objects.length), 0) FROM packs "
                "LEFT JOIN objects ON objects.pack = packs.name WHERE packs.size <> :open "
                "GROUP BY packs.name, packs.size",
                {"open": OPEN},
            )
        ]

    def objects(self, pack: str | None = None) -> list[Known]:
        """All objects, or those of a pack, in the order in which they lie."""
        where = "" if pack is None else "WHERE pack = :pack"
        rows = self._db.rows(
            "SELECT digest, pack, start, length, size, base, depth FROM objects "
            f"{where} ORDER BY pack, start",
            {} if pack is None else {"pack": pack},
        )
        return [_known(*row) for row in rows]

    def move(self, objects: Iterable[Known], pack: tuple[str, int], old: str) -> None:
        """Says that objects of the pack `old` are in another now."""
        with self._db.transaction():
            self._close_pack(*pack)
            for known in objects:
                self._db.run(
                    "UPDATE objects SET pack = :pack, start = :start "
                    "WHERE digest = :digest AND pack = :old",
                    {**known.place._asdict(), "digest": known.digest, "old": old},
                )

    def forget_pack(self, name: str) -> bool:
        """Forgets a pack, if no object is in it."""
        with self._db.transaction():
            return bool(
                self._db.run(
                    "DELETE FROM packs WHERE name = :name AND NOT EXISTS "
                    "(SELECT 1 FROM objects WHERE pack = :name)",
                    {"name": name},
                )
            )

    def totals(self) -> dict[str, int]:
        """How many models, objects and differences, and bytes step by step.

        Returns:
            `raw` bytes of all models, of different `files`, of different `tensors` (all objects but manifests), as they are
            `stored`, and with what is to be collected, of `packs`.
        """
        ask = {
            "models": "SELECT COUNT(*) FROM models",
            "objects": "SELECT COUNT(*) FROM objects WHERE needed > 0",
            "differences": "SELECT COUNT(*) FROM objects WHERE needed > 0 AND base IS NOT NULL",
            "raw": "SELECT COALESCE(SUM(size), 0) FROM models",
            "files": "SELECT COALESCE(SUM(size), 0) FROM files",
            "tensors": "SELECT COALESCE(SUM(size), 0) FROM objects WHERE needed > 0",
            "manifests": "SELECT COALESCE(SUM(length), 0) FROM "
            "(SELECT DISTINCT manifest, length FROM models) AS lists",
            "stored": "SELECT COALESCE(SUM(length), 0) FROM objects WHERE needed > 0",
            "packs": f"SELECT COALESCE(SUM(size), 0) FROM packs WHERE size <> {OPEN}",
        }
        found = {key: int(self._db.rows(sql)[0][0]) for key, sql in ask.items()}
        found["tensors"] -= found.pop("manifests")
        return found

    def _close_pack(self, name: str, size: int) -> None:
        if not self._db.run(
            "UPDATE packs SET size = :size WHERE name = :name AND size = :open",
            {"name": name, "size": size, "open": OPEN},
        ):
            raise Vanished(name)

    def _insert(self, known: Known) -> None:
        """Adds an object, unless someone has added one of its name meanwhile."""
        added = self._db.run(
            "INSERT INTO objects (digest, pack, start, length, size, base, depth, needed, dead) "
            "VALUES (:digest, :pack, :start, :length, :size, :base, :depth, 0, :now) "
            "ON CONFLICT (digest) DO NOTHING",
            {
                "digest": known.digest, **known.place._asdict(), "size": known.size,
                "base": known.base, "depth": known.depth, "now": time.time(),
            },
        )  # fmt: skip
        if added and known.base is not None:
            self._need(known.base)

    def _need(self, digest: bytes) -> None:
        if not self._db.run(
            "UPDATE objects SET needed = needed + 1, dead = NULL WHERE digest = :digest",
            {"digest": digest},
        ):
            raise Vanished(digest.hex())

    def _release(self, digest: bytes, when: float) -> None:
        self._db.run(
            "UPDATE objects SET needed = needed - 1, "
            "dead = CASE WHEN needed = 1 THEN :now ELSE dead END WHERE digest = :digest",
            {"digest": digest, "now": when},
        )


def _known(
    digest: bytes, pack: str, start: int, length: int, size: int, base: bytes | None, depth: int
) -> Known:
    return Known(digest, Place(pack, start, length), size, base, depth)
