"""Hostile input: mutated archives, checkpoints, differences, planes and requests through a store's readers."""

import io
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.bench import Bench
from benchmarks.fuzzing import Target, main, prove_all

TARGETS = ("archive", "contents", "pickle", "manifest", "object", "difference", "plane", "request")
SLOW = ("request",)


def prove(bench: Bench) -> None:
    prove_all(bench, "benchmarks.store.fuzz", TARGETS, SLOW)
    bench.note(
        "`altered` is possible where a format has no checksum of its own: what files say of their tensors, manifests (they lie "
        "in objects, which have digests), objects that are stored as they are (likewise), and planes"
    )


def find_target(name: str, work: Path) -> Target:
    """A reader by name; files are written below `work`."""
    builders: dict[str, Callable[[Path], Target]] = {
        "archive": _archive, "contents": _contents, "pickle": _pickle, "manifest": _manifest,
        "object": _object, "difference": _difference, "plane": _plane, "request": _request,
    }  # fmt: skip
    return builders[name](work)


def _weights(seed: int = 0, change: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 0.02, 3000)
    values += np.random.default_rng(seed + 1).normal(0, change, 3000) if change else 0
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").view(np.uint8)


def _files(work: Path) -> Path:
    folder = work / "files"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {"a": torch.randn(60, 50).bfloat16(), "b": torch.arange(700), "c": torch.ones(3)}
    save_file(tensors, folder / "model.safetensors")
    torch.save({"model": tensors, "step": 7}, folder / "checkpoint.pt")
    with (folder / "some.npz").open("wb") as file:
        np.savez(file, x=np.ones((30, 50)), y=np.arange(5))
    np.save(folder / "one.npy", np.linspace(0, 1, 2000))
    return folder


def _archive(work: Path) -> Target:
    from laconic.store.archive import Archive
    from laconic.store.packing import pack

    whole = pack(_files(work))[0].read_bytes()

    def read(data: bytes) -> dict[str, bytes]:
        archive = Archive(data)
        return {n: b"".join(c.tobytes() for c in archive.chunks(n)) for n in archive.files}

    return Target([whole], read, True)


def _contents(work: Path) -> Target:
    from laconic.store.parts import read_contents

    def read(data: bytes) -> Any:
        found = read_contents(io.BytesIO(data), len(data), "some")
        ends = np.cumsum([part.size for part in found.parts]).tolist()
        if ends[-1] != len(data) or [p.start for p in found.parts] != [0, *ends[:-1]]:
            raise AssertionError("parts do not cover the file")
        return found

    return Target([path.read_bytes() for path in sorted(_files(work).iterdir())], read, False)


def _pickle(work: Path) -> Target:
    import zipfile

    from laconic.store.pickles import read_storages

    with zipfile.ZipFile(_files(work) / "checkpoint.pt") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        return Target([archive.read(name)], read_storages, False)


def _manifest(work: Path) -> Target:
    from laconic.store import manifest
    from laconic.store.archive import Archive
    from laconic.store.packing import pack

    files = list(Archive(pack(_files(work))[0]).files.values())
    return Target([manifest.to_bytes(files)], manifest.from_bytes, False)


def _object(work: Path) -> Target:
    from laconic.store.objects import Base, decode, encode

    base, data = _weights(), _weights(change=1e-4)
    near = Base(bytes(32), base)
    noise = np.random.default_rng(0).integers(0, 256, data.size, dtype=np.uint8)
    samples = [
        encode(data, "BF16"), encode(data, "BF16", base=near), encode(noise, None),
        encode(np.resize(np.arange(9, dtype=np.uint8), data.size), None),
    ]  # fmt: skip
    return Target(samples, lambda blob: decode(blob, data.size, lambda _: base).tobytes(), False)


def _difference(work: Path) -> Target:
    from laconic.coding.deltas import compress_delta, decompress_delta

    base, data = _weights(), _weights(change=1e-4)
    samples = [compress_delta(data, base, d).tobytes() for d in ("BF16", "F32", "U8", "F64")]
    return Target(samples, lambda blob: decompress_delta(blob, base).tobytes(), True)


def _plane(work: Path) -> Target:
    from laconic.coding.mixing import decode_plane, encode_plane

    generator = np.random.default_rng(0)
    plane, before = generator.binomial(15, 0.1, (2, 30, 40)).astype(np.uint8)
    return Target(
        [encode_plane(plane, before)], lambda blob: decode_plane(blob, before).tobytes(), False
    )


def _request(work: Path) -> Target:
    """Paths of requests, answered by the application itself: never more than the files of the store."""
    from starlette.testclient import TestClient

    from laconic.store.server import application
    from laconic.store.store import Store

    folder = _files(work)
    store = Store(work / "store")
    store.add(folder, "me/model")
    secret = work / "secret"
    secret.write_text("nobody may read this")
    client = TestClient(application(store), raise_server_exceptions=True)
    known = {path.read_bytes() for path in folder.iterdir()}

    def ask(path: bytes) -> int:
        text = urllib.parse.quote(path.decode("latin-1"), safe="/?=&.%")
        answer = client.get("/" + text.lstrip("/"), follow_redirects=False)
        if answer.status_code == 200 and "/resolve/" in text and answer.content not in known:
            raise AssertionError("something else than a file of the store was sent")
        if b"nobody may read" in answer.content or answer.status_code >= 500:
            raise AssertionError(f"answer {answer.status_code} to {text[:80]!r}")
        return answer.status_code

    samples = [
        b"me/model/resolve/main/model.safetensors", b"api/models/me/model/tree/main?recursive=true",
        b"api/models/me/model/revision/main", b"api/models?search=model&limit=3",
        b"me/model/resolve/main/../../../secret", json.dumps({"a": 1}).encode(),
    ]  # fmt: skip
    return Target(samples, ask, False)


if __name__ == "__main__":
    main(find_target)
