import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import CorruptFile, UsageError
from laconic.store import manifest
from laconic.store.manifest import StoredFile, StoredPart, checked_path, from_bytes, to_bytes
from laconic.store.parts import Part

NAME = bytes(range(32))
SIZES = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6)


def stored(sizes, path="a/b"):
    """A file of parts of such sizes; some have objects of their own."""
    parts, end = [], 0
    for number, (size, own) in enumerate(sizes):
        digests = (NAME,) * -(-size // manifest.SLAB) if own else ()
        shape = (size,) if own else ()
        part = Part(end, size, "U8", f"tensor {number}" if own else None, shape)
        parts.append(StoredPart(part, digests))
        end += size
    rest = sum(size for (size, _), part in zip(sizes, parts) if not part.digests)
    return StoredFile(path, end, NAME, "other", tuple(parts), (NAME,) * -(-rest // manifest.SLAB))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(manifest, "SLAB", 4)


@given(SIZES)
def test_round_trip(sizes):
    files = [stored(sizes), stored([], "c")]
    assert from_bytes(to_bytes(files)) == files


@given(SIZES)
def test_runs_cover_a_file_and_lie_in_their_objects(sizes):
    file, end, passed = stored(sizes), 0, 0
    for run in file.runs():
        assert run.start == end
        assert 0 < run.size <= run.whole <= 4
        assert 0 <= run.first <= run.whole - run.size
        end += run.size
        if run.size < run.whole or run.first:
            passed += run.size
    assert end == file.size
    assert passed <= file.rest_size


@pytest.mark.parametrize("path", ["a", "a/b.c", "..a/b..", "a b", "ä/é", "a:b"])
def test_paths_below_a_folder(path):
    if path != "a:b":
        assert checked_path(path) == path


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\0b", "c:x", "C:/x"]
)
def test_other_paths(path):
    with pytest.raises(UsageError, match="no path below a folder"):
        checked_path(path)


def changed(**fields):
    value = json.loads(to_bytes([stored([(5, True), (3, False)])]))
    value["files"][0] |= fields
    return json.dumps(value).encode()


PART = [5, "U8", "tensor 0", [5], (NAME * 2).hex()]


@pytest.mark.parametrize(
    "damaged",
    [
        changed(path="../a"), changed(path=3), changed(size=9), changed(digest="00"),
        changed(digest=""), changed(rest=""), changed(rest=NAME.hex() * 2), changed(parts=[]),
        changed(parts=[PART[:4]]), changed(parts=[[-5, *PART[1:]]]), changed(parts=[[5.0, *PART[1:]]]),
        changed(parts=[[5, "F99", *PART[2:]]]), changed(parts=[[5, "U8", 7, *PART[3:]]]),
        changed(parts=[[5, "U8", "a", [-1], PART[4]]]), changed(parts=[[9, *PART[1:]]]),
        changed(parts=7), changed(parts=[[5, "U8", "a", 7, PART[4]]]),
        b"", b"[]", b"{}", b"\xff", b'{"laconic_manifest": 2, "files": []}',
        b'{"laconic_manifest": 1, "files": 3}', b'{"laconic_manifest": 1, "files": [3]}',
        b"[" * 100_000,
    ],
    ids=lambda data: data[-60:].decode(errors="replace"),
)  # fmt: skip
def test_damaged_manifests(damaged):
    with pytest.raises(CorruptFile, match="manifest"):
        from_bytes(damaged)


def test_two_files_at_one_path():
    with pytest.raises(CorruptFile, match="one path"):
        from_bytes(to_bytes([stored([]), stored([(1, False)])]))
