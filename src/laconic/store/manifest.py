"""Files as lists of parts, parts as lists of objects: all that is needed to put them together again.

An object is a run of at most `SLAB` bytes, named by the BLAKE3 digest of its bytes, so that equal runs are
one object: of equal files, of equal tensors in different files, of tensors that grew by some rows.
Each tensor has objects of its own, unless it is small. Small ones, and what lies between tensors, are put
behind one another: the `rest` of the file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, NamedTuple

from laconic.coding.planes import LAYOUTS
from laconic.errors import CorruptFile, UsageError
from laconic.store.parts import Part

FORMAT = 1
SLAB = 1 << 24  # bytes of an object, and what a worker has in memory
SMALL = 1 << 12  # bytes of a tensor below which an object of its own does not pay
DIGEST = 32  # bytes of a name


class Run(NamedTuple):
    """Bytes of a file, and where they are in an object.

    Attributes:
        start: first byte in the file.
        size: bytes.
        digest: of the object.
        whole: bytes of the object.
        first: of the run in the object.
    """

    start: int
    size: int
    digest: bytes
    whole: int
    first: int


class StoredPart(NamedTuple):
    """A part of a file and its objects.

    Attributes:
        part: where it lies in the file.
        digests: of its objects, in order, each but the last of `SLAB` bytes; none if it is in the rest.
    """

    part: Part
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class StoredFile:
    """A file of a manifest.

    Attributes:
        path: below the folder that was stored, with `/`; never absolute, never upwards.
        size: bytes.
        digest: BLAKE3 of its bytes.
        kind: as in `Contents`.
        parts: cover it, in order.
        rest: objects of the parts that have none of their own, put behind one another.
        executable: whether it may be run.
    """

    path: str
    size: int
    digest: bytes
    kind: str
    parts: tuple[StoredPart, ...]
    rest: tuple[bytes, ...]
    executable: bool = False

    def runs(self) -> Iterator[Run]:
        """Where its bytes are, in order."""
        passed, left = 0, self.rest_size
        for part, digests in self.parts:
            done = 0
            for digest in digests:
                size = min(SLAB, part.size - done)
                yield Run(part.start + done, size, digest, size, 0)
                done += size
            while done < part.size:
                number, first = divmod(passed, SLAB)
                whole = min(SLAB, left - number * SLAB)
                size = min(whole - first, part.size - done)
                yield Run(part.start + done, size, self.rest[number], whole, first)
                done, passed = done + size, passed + size

    @property
    def rest_size(self) -> int:
        """Bytes of the rest."""
        return sum(part.size for part, digests in self.parts if not digests)

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        parts = [
            [p.size, p.dtype, p.name, list(p.shape), b"".join(digests).hex()]
            for p, digests in self.parts
        ]
        found = {"path": self.path, "size": self.size, "digest": self.digest.hex()}
        found |= {"kind": self.kind, "executable": self.executable}
        return found | {"rest": b"".join(self.rest).hex(), "parts": parts}

    @classmethod
    def from_json(cls, value: Any) -> "StoredFile":
        """Reads what `to_json` gave; raises `CorruptFile` for what cannot be."""
        try:
            parts, end = [], 0
            for size, dtype, name, shape, joined in value["parts"]:
                if type(size) is not int or size < 0 or dtype not in LAYOUTS:
                    raise ValueError(f"a part of {size!r} bytes of {dtype!r}")
                if not (name is None or isinstance(name, str)) or any(n < 0 for n in shape):
                    raise ValueError(f"a part {name!r} of shape {shape!r}")
                digests = _digests(joined)
                if digests and len(digests) != -(-size // SLAB):
                    raise ValueError(f"{len(digests)} objects for {size} bytes")
                parts.append(StoredPart(Part(end, size, dtype, name, tuple(shape)), digests))
                end += size
            (digest,), rest = _digests(value["digest"]), _digests(value["rest"])
            path, kind = checked_path(value["path"]), str(value["kind"])
            found = cls(path, end, digest, kind, tuple(parts), rest, bool(value["executable"]))
            if value["size"] != end or len(rest) != -(-found.rest_size // SLAB):
                raise ValueError(f"parts of {end} bytes, {len(rest)} objects for the rest")
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise CorruptFile(f"manifest: a file's entry is damaged: {error}") from error
        return found


def objects_of(files: Iterable[StoredFile]) -> set[bytes]:
    """Digests of all objects of files."""
    found: set[bytes] = set()
    for file in files:
        found.update(file.rest)
        for part in file.parts:
            found.update(part.digests)
    return found


def checked_path(path: str) -> str:
    """`path`, if it stays below the folder that it is put into.

    Raises:
        UsageError: it is absolute, empty, leads upwards, or is not in its shortest form.
    """
    odd = {"", ".", ".."} & set(path.split("/"))
    if odd or PureWindowsPath(path).drive or any(c in path for c in "\\\0"):
        raise UsageError(f"{path!r} is no path below a folder")
    return path


def to_bytes(files: Sequence[StoredFile]) -> bytes:
    """A manifest as JSON."""
    value = {"laconic_manifest": FORMAT, "files": [file.to_json() for file in files]}
    return json.dumps(value, separators=(",", ":")).encode()


def from_bytes(data: bytes) -> list[StoredFile]:
    """The files of a manifest.

    Raises:
        CorruptFile: no manifest, of a format of the future, or two files at one path.
    """
    try:
        value = json.loads(data)
        found = value["laconic_manifest"], value["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"manifest: it cannot be read: {error!r}") from error
    if found[0] != FORMAT or not isinstance(found[1], list):
        raise CorruptFile(f"manifest: format {found[0]!r}, this laconic reads {FORMAT}")
    files = [StoredFile.from_json(entry) for entry in found[1]]
    if len({file.path for file in files}) != len(files):
        raise CorruptFile("manifest: two files have one path")
    return files


def _digests(text: str) -> tuple[bytes, ...]:
    joined = bytes.fromhex(text)
    if len(joined) % DIGEST:
        raise ValueError("a digest is cut off")
    return tuple(joined[i : i + DIGEST] for i in range(0, len(joined), DIGEST))
