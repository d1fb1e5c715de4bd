"""A store of models: every tensor once, fine-tunes as differences from what they were made of.

    STORE/
      index.sqlite    models, objects, where each is (`laconic.store.index`)
      packs/          the objects (`laconic.store.packs`)

A model is added in one transaction, after everything that it needs is on the disk: whatever happens before, the store
is as it was, but for files that the next `collect` removes.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from laconic.errors import CorruptFile, MissingExtra, UsageError
from laconic.progress import SILENT, Progress
from laconic.store import manifest, objects
from laconic.store.adding import MAX_DEPTH, Adding, lives, owner
from laconic.store.database import SQLite
from laconic.store.index import SCHEMA, Index, Known, Model, Vanished
from laconic.store.inputs import inputs_of
from laconic.store.packs import FolderPacks, Packs
from laconic.store.reading import StoredFiles
from laconic.store.sketches import FAMILY

INDEX = "index.sqlite"
CONFIG = "store.json"
PACKS = "packs"
TRIES = 5  # how often a model is added anew if what it needs is collected meanwhile
GRACE = 3600.0  # seconds that an object stays after the last need of it
ABANDONED = 7 * 86400.0  # seconds after which a writer on another machine is taken for dead
UNKNOWN = 60.0  # seconds that a file stays of which the index knows nothing
SPARSE = 0.5  # share of a pack's bytes below which what is left moves to another


@dataclass(frozen=True)
class Added:
    """What adding a model did.

    Attributes:
        model: as the index has it.
        known: bytes that were there already.
        stored: bytes that were written.
        seconds: that it took.
    """

    model: Model
    known: int
    stored: int
    seconds: float


@dataclass(frozen=True)
class Collected:
    """What a collection did.

    Attributes:
        objects: that are gone.
        packs: that are gone.
        freed: bytes of packs that are gone, less those that took their place.
    """

    objects: int
    packs: int
    freed: int


class Store:
    """A store in a folder.

    Args:
        folder: it is made where it is missing.
        index: the index; in a file of the folder by default.
        packs: where objects go; into the folder by default.
    """

    def __init__(
        self, folder: Path | str, *, index: Index | None = None, packs: Packs | None = None
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.index = index or Index(SQLite(self.folder / INDEX, SCHEMA))
        self.packs = packs or FolderPacks(self.folder / PACKS)

    @classmethod
    def configured(cls, folder: Path | str) -> "Store":
        """The store in a folder, with its index and packs where its `store.json` says.

        `{"index": "postgresql://...", "packs": "s3://bucket/folder", "options": {...}}`; what is not said is in the
        folder. `options` are fsspec's for the packs.

        Raises:
            CorruptFile: `store.json` is none.
            MissingExtra: what it names needs more to be installed.
        """
        path = Path(folder) / CONFIG
        if not path.is_file():
            return cls(folder)
        try:
            said = json.loads(path.read_text())
            index, packs, options = said.get("index"), said.get("packs"), said.get("options") or {}
        except (ValueError, AttributeError) as error:
            raise CorruptFile(f"{path}: it cannot be read: {error}") from error
        try:
            from laconic.store.remote import ObjectPacks, PostgreSQL
        except ImportError as error:
            raise MissingExtra(error.name or "SQLAlchemy", "store") from None
        return cls(
            folder, index=Index(PostgreSQL(index, SCHEMA)) if index else None,
            packs=ObjectPacks(packs, **options) if packs else None,
        )  # fmt: skip

    def add(
        self, source: Path | str, name: str | None = None, *, base: str | None = None,
        engine: str = "rans", threads: int = 1, max_depth: int = MAX_DEPTH, family: float = FAMILY,
        progress: Progress = SILENT,
    ) -> Added:  # fmt: skip
        """Adds a file or a folder as a model.

        Args:
            source: of its files.
            name: of the model, such as `someone/some-model`; by default what `source` is called. If there is one of
                that name already, this is its next revision.
            base: name of the model that it was made of, or of one of its revisions; by default the nearest one is
                sought. `""` for none.
            engine: see `laconic.coding.blocks`.
            threads: that encode.
            max_depth: how many differences may lie behind one another.
            family: bits of a weight below which another model may be the base.
            progress: follows the files.

        Raises:
            UsageError: nothing is there, or a name that cannot be.
            CorruptFile: a `.safetensors` file is damaged; nothing was added.
        """
        started = time.perf_counter()
        source = Path(source)
        name = checked_name(name or source.resolve().name)
        inputs = inputs_of(source)
        near = None if base is None else base and self.model(base)
        for _ in range(TRIES):
            adding = Adding(self, inputs, engine, threads, max_depth, family)
            try:
                model, counted = adding.run(name, near, progress)
                return Added(model, counted.known, counted.stored, time.perf_counter() - started)
            except Vanished:
                continue
            finally:
                adding.abandon()
        raise UsageError(f"{name}: what it needs was collected {TRIES} times meanwhile; try again")

    def model(self, name: str) -> Model:
        """The newest revision of `name`, or the one behind its `@`; some first digits are enough.

        Raises:
            UsageError: there is none, or there are several.
        """
        wanted, _, revision = name.partition("@")
        found = [m for m in self.index.models(wanted) if m.revision.startswith(revision)]
        if not found:
            raise UsageError(f"there is no model {name!r} in {self.folder}")
        if revision and len(found) > 1:
            raise UsageError(f"{name!r} may be {len(found)} revisions: give more digits")
        return found[-1]

    def open(self, name: str | Model) -> "StoredModel":
        """The files of a model, to be read.

        Raises:
            UsageError: there is none of that name.
            CorruptFile: its manifest is damaged.
        """
        model = self.model(name) if isinstance(name, str) else name
        return StoredModel(self, model)

    def remove(self, name: str) -> Model:
        """Forgets one revision of a model, the newest unless `name` says which."""
        model = self.model(name)
        files = self.open(model).files.values()
        needed = manifest.objects_of(files) | {model.manifest}
        self.index.remove(model, needed, {file.digest for file in files})
        return model

    def collect(self, *, grace: float = GRACE) -> Collected:
        """Deletes what no model needs.

        Args:
            grace: seconds for which it must not have been needed; someone may be adding a model that needs it.
        """
        before = time.time() - grace
        gone = 0
        while fewer := len(self.index.collect(before)):
            gone += fewer
        freed = packs = 0
        for name, size, live in self.index.packs():
            if live and live < SPARSE * size:
                freed -= self._move(name)
            if live < SPARSE * size and self.index.forget_pack(name):
                self.packs.remove(name)
                freed, packs = freed + size, packs + 1
        for name, writer, since in self.index.open_packs():
            dead = since < time.time() - ABANDONED or not lives(writer)
            if dead and self.index.forget_pack(name):
                self.packs.remove(name)
        known = {name for name, _, _ in self.index.packs()}
        known |= {name for name, _, _ in self.index.open_packs()}
        for name, written in self.packs.names():  # of a collection that did not live to the end
            if name not in known and written < time.time() - UNKNOWN:
                self.packs.remove(name)
        return Collected(gone, packs, freed)

    def damaged(self, progress: Progress = SILENT) -> Iterator[tuple[Known, str]]:
        """Objects that cannot be read, and why; every object is read."""
        known = self.index.objects()
        for one in progress.track(known, "verifying", total=len(known)):
            try:
                self.load(one.digest, one.size)
            except (CorruptFile, OSError) as error:
                yield one, str(error)

    def needing(self, digests: set[bytes]) -> list[Model]:
        """Models that cannot be read without some of these objects."""
        bases = {known.digest: known.base for known in self.index.objects()}

        def needs(digest: bytes | None) -> bool:
            while digest is not None:
                if digest in digests:
                    return True
                digest = bases.get(digest)
            return False

        found = []
        for model in self.index.models():
            if needs(model.manifest):
                found.append(model)
                continue
            if any(needs(d) for d in manifest.objects_of(self.open(model).files.values())):
                found.append(model)
        return found

    def load(self, digest: bytes, size: int | None = None) -> np.ndarray:
        """The bytes of an object, `size` if that is known, compared with their digest.

        Raises:
            CorruptFile: it is not there, damaged, or not what its name says.
        """
        known, blob = self._blob(digest)
        if size not in (None, known.size):
            raise CorruptFile(f"object {digest.hex()}: {known.size} bytes, {size} are expected")
        try:
            raw = objects.decode(blob, known.size, self.load)
        except CorruptFile as error:
            raise CorruptFile(f"object {digest.hex()} in {known.place.pack}: {error}") from error
        if blake3(raw.data).digest() != digest:
            raise CorruptFile(
                f"object {digest.hex()} in {known.place.pack}: its bytes are not those of its name"
            )
        return raw

    def _blob(self, digest: bytes) -> tuple[Known, bytes]:
        """An object as it is stored."""
        missing = ""
        for _ in range(2):  # it may be moved between two looks
            known = self.index.find(digest)
            if known is None:
                raise CorruptFile(f"object {digest.hex()}: the store does not have it")
            try:
                return known, self.packs.read(known.place)
            except FileNotFoundError:
                missing = known.place.pack
        raise CorruptFile(f"object {digest.hex()}: its pack {missing} is not there")

    def _move(self, pack: str) -> int:
        """What is left of a pack moves to another; its bytes."""
        writer = self.packs.writer()
        self.index.begin_pack(writer.name, owner())
        try:
            moved = [
                known._replace(place=writer.add(known.digest, self.packs.read(known.place)))
                for known in self.index.objects(pack)
            ]
            size = writer.close()
            self.index.move(moved, (writer.name, size), pack)
        except BaseException:
            writer.abandon()
            raise
        return size


class StoredModel(StoredFiles):
    """The files of a model in a store.

    Attributes:
        model: as the index has it.
    """

    def __init__(self, store: Store, model: Model) -> None:
        self._store, self.model = store, model
        plain = store.load(model.manifest, model.length)
        super().__init__(manifest.from_bytes(plain.tobytes()))

    def load(self, digest: bytes, size: int) -> np.ndarray:
        """The (size,) bytes of an object."""
        return self._store.load(digest, size)


def checked_name(name: str) -> str:
    """`name`, if it can be one: as on the Hugging Face Hub, `some-model` or `someone/some-model`.

    Raises:
        UsageError: it cannot.
    """
    parts = name.split("/")
    odd = [
        p for p in parts if not p or p[0] in ".-" or not all(c.isalnum() or c in "-_." for c in p)
    ]
    if odd or len(parts) > 2 or len(name) > 96:
        raise UsageError(
            f"{name!r} cannot be a model's name: letters, digits, '-', '_' and '.', with at most one '/' between"
        )
    return name
