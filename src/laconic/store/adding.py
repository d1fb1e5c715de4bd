"""A model on its way into a store."""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import zstandard
from blake3 import blake3

from laconic.progress import Progress
from laconic.store import manifest, objects
from laconic.store.index import Known, Model, Vanished
from laconic.store.ingest import Fresh, Ingest
from laconic.store.inputs import opened
from laconic.store.lineage import declared_base
from laconic.store.manifest import StoredFile
from laconic.store.objects import Base
from laconic.store.packs import FULL, PackWriter
from laconic.store.parts import Contents
from laconic.store.pipeline import in_order
from laconic.store.sketches import Tensor, distance, signature, sketch

if TYPE_CHECKING:
    from laconic.store.store import Store

MAX_DEPTH = 1  # differences behind one another


@dataclass
class Counted:
    """Bytes of a model.

    Attributes:
        known: in objects that were there already.
        stored: written.
    """

    known: int = 0
    stored: int = 0


class Adding:
    """One try at adding a model.

    Args:
        store: that it goes into.
        inputs: (path, file) of its files.
        engine: of blocks.
        threads: that encode.
        max_depth: differences behind one another.
        family: bits of a weight below which a model may be the base.
    """

    def __init__(
        self, store: "Store", inputs: Sequence[tuple[str, Path]], engine: str, threads: int,
        max_depth: int, family: float,
    ) -> None:  # fmt: skip
        self._store, self._inputs, self._engine, self._threads = store, inputs, engine, threads
        self._max_depth, self._family = max_depth, family
        self._counted = Counted()
        self._fresh: dict[bytes, Known] = {}
        self._seen: set[bytes] = set()
        self._writer: PackWriter | None = None
        self._closed: list[tuple[PackWriter, int]] = []
        self._bases: dict[tuple[str, int], bytes] = {}
        self._contents: dict[str, Contents] = {}
        self._done = False

    def run(
        self, name: str, base: Model | Literal[""] | None, progress: Progress
    ) -> tuple[Model, Counted]:
        """Adds the model.

        Raises:
            Vanished: what it needs was collected meanwhile; nothing was added.
        """
        mark, bits = self._sketch()
        if base is None:
            base = self._nearest(mark, bits) or declared_base(self._inputs, self._store.index)
        if base:
            self._bases = _objects_by_tensor(list(self._store.open(base).files.values()))
        files = []
        for path, file in progress.track(self._inputs, "adding", total=len(self._inputs)):
            with opened(path, file, self._contents[path]) as source:
                ingest = Ingest(source, self._is_new)
                for fresh, blob in in_order(self._encode, ingest.fresh(), self._threads):
                    self._write(fresh.digest, blob, fresh.raw.size)
                files.append(ingest.stored())
        plain = manifest.to_bytes(files)
        digest = blake3(plain).digest()
        if self._is_new(digest):
            packed = zstandard.ZstdCompressor(level=9, write_checksum=True).compress(plain)
            self._write(digest, bytes((objects.ZSTD,)) + packed, len(plain))
        self._close_pack()
        size = sum(file.size for file in files)
        self._counted.known = size - sum(k.size for d, k in self._fresh.items() if d != digest)
        model = Model(
            name, digest.hex()[:40], time.time(), digest, len(plain), len(files), size,
            _root(base) if base and self._differs() else None, mark, bits,
        )  # fmt: skip
        self._done = self._store.index.add(
            model, list(self._fresh.values()), [(w.name, size) for w, size in self._closed],
            manifest.objects_of(files) | {digest}, {(file.digest, file.size) for file in files},
        )  # fmt: skip
        return model, self._counted

    def abandon(self) -> None:
        """Removes what was written, unless the model was added."""
        if self._done:
            return
        open_one = [self._writer] if self._writer is not None else []
        for writer in [*open_one, *(writer for writer, _ in self._closed)]:
            writer.abandon()
            self._store.index.forget_pack(writer.name)

    def _differs(self) -> bool:
        """Whether anything is stored as a difference."""
        return any(known.base is not None for known in self._fresh.values())

    def _sketch(self) -> tuple[bytes, bytes]:
        """The signature and the sketch of the model; what its files hold is kept."""
        with ExitStack() as stack:
            tensors = []
            for path, file in self._inputs:
                source = stack.enter_context(opened(path, file))
                self._contents[path] = source.contents
                tensors += [Tensor(part, source.file) for part in source.contents.parts]
            return signature(tensor.part for tensor in tensors), sketch(tensors)

    def _nearest(self, mark: bytes, bits: bytes) -> Model | None:
        """The model of the store that differs in the fewest bits, if they are of one family."""
        if not mark:
            return None
        alike = [(distance(bits, model.sketch), model) for model in self._store.index.alike(mark)]
        best = min(alike, key=lambda pair: pair[0], default=None)
        return best[1] if best is not None and best[0] < self._family else None

    def _is_new(self, digest: bytes) -> bool:
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return self._store.index.find(digest) is None

    def _encode(self, fresh: Fresh) -> tuple[Fresh, bytes]:
        return fresh, objects.encode(fresh.raw, fresh.dtype, self._engine, self._base(fresh))

    def _base(self, fresh: Fresh) -> Base | None:
        """The object at the same place of the base, or what that is itself the difference from."""
        if fresh.part is None:
            return None
        digest = self._bases.get((str(fresh.part.name), fresh.number))
        known = None if digest is None else self._store.index.find(digest)
        while known is not None and known.depth >= self._max_depth:
            known = None if known.base is None else self._store.index.find(known.base)
        if known is None or 2 * known.size < fresh.raw.size:
            return None
        return Base(known.digest, self._store.load(known.digest, known.size))

    def _write(self, digest: bytes, blob: bytes, size: int) -> None:
        if self._writer is None:
            self._writer = self._store.packs.writer()
            self._store.index.begin_pack(self._writer.name, owner())
        place = self._writer.add(digest, blob)
        base = objects.base_of(blob)
        depth = 0 if base is None else 1 + self._depth(base)
        self._fresh[digest] = Known(digest, place, size, base, depth)
        self._counted.stored += len(blob)
        if place.start + place.length >= FULL:
            self._close_pack()

    def _depth(self, digest: bytes) -> int:
        known = self._store.index.find(digest)
        if known is None:
            raise Vanished(digest.hex())
        return known.depth

    def _close_pack(self) -> None:
        if self._writer is not None:
            self._closed.append((self._writer, self._writer.close()))
            self._writer = None


def owner() -> str:
    """Who is writing: this process on this machine."""
    return f"{os.getpid()}@{socket.gethostname()}"


def lives(owner: str) -> bool:
    """Whether that process may still be writing; of other machines nothing is known."""
    process, _, host = owner.partition("@")
    return host != socket.gethostname() or Path(f"/proc/{process}").exists()


def _root(base: Model) -> str:
    """What differences from a base are differences from, where it consists of such itself."""
    return base.base or f"{base.name}@{base.revision}"


def _objects_by_tensor(files: Sequence[StoredFile]) -> dict[tuple[str, int], bytes]:
    """Digest of each object of each tensor, by the tensor's name and the object's number."""
    return {
        (str(part.name), number): digest
        for file in files
        for part, digests in file.parts
        for number, digest in enumerate(digests)
    }
