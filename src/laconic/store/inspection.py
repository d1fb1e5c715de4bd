"""What is in an archive, tensor by tensor."""

from pathlib import Path
from typing import Any

from laconic.store.archive import Archive
from laconic.store.manifest import StoredFile


def inspect_archive(path: Path) -> dict[str, Any]:
    """Files and tensors with their bytes, before and in the archive.

    Raises:
        CorruptFile: no archive, or damaged.
    """
    archive = Archive(path)
    seen: set[bytes] = set()
    files = [_file(archive, file, seen) for file in archive.files.values()]
    raw = sum(file["raw_bytes"] for file in files)
    return {
        "path": str(path), "raw_bytes": raw, "stored_bytes": path.stat().st_size, "files": files,
    }  # fmt: skip


def _file(archive: Archive, file: StoredFile, seen: set[bytes]) -> dict[str, Any]:
    tensors = [
        {
            "name": part.name, "dtype": part.dtype, "shape": list(part.shape),
            "raw_bytes": part.size, **_objects(archive, digests, seen),
        }
        for part, digests in file.parts
        if part.name is not None and digests
    ]  # fmt: skip
    rest = {"raw_bytes": file.rest_size, **_objects(archive, file.rest, seen)}
    return {
        "path": file.path, "kind": file.kind, "raw_bytes": file.size,
        "stored_bytes": rest["stored_bytes"] + sum(t["stored_bytes"] for t in tensors),
        "tensors": tensors, "rest": rest,
    }  # fmt: skip


def _objects(archive: Archive, digests: tuple[bytes, ...], seen: set[bytes]) -> dict[str, Any]:
    """Bytes of the objects that no one before has, and how they are stored."""
    fresh = [d for d in dict.fromkeys(digests) if d not in seen]
    seen.update(fresh)
    kinds = sorted({archive.kind_of(digest) for digest in fresh}) or ["as before"]
    return {
        "stored_bytes": sum(archive.stored_bytes(digest) for digest in fresh),
        "as": " ".join(kinds) if digests else "",
    }
