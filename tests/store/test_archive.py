"""Archives: every byte comes back, alone or with all others, and damage is seen."""

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from laconic.coding.framing import IndexedReader, IndexedWriter
from laconic.errors import CorruptFile, UsageError
from laconic.store.archive import Archive, ArchiveWriter
from laconic.store.inputs import inputs_of, opened, piped
from laconic.tensors.dtypes import from_raw
from tests.store.files import MAKERS, contents_of, make_all, weights


def packed(folder, **options):
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, **options)
    for name, path in inputs_of(folder):
        with opened(name, path) as file:
            writer.add(file)
    assert writer.close(folder=folder.is_dir()) == len(stream.getvalue())
    return stream.getvalue()


def unpacked(data, **options):
    archive = Archive(data)
    return {name: b"".join(archive.chunks(name, **options)) for name in archive.files}


@pytest.mark.parametrize("engine", ["huffman", "rans"])
def test_all_files_come_back(tmp_path, slab, engine):
    make_all(tmp_path / "folder")
    data = packed(tmp_path / "folder", engine=engine)
    assert unpacked(data) == unpacked(data, threads=3) == contents_of(tmp_path / "folder")


def test_the_same_bytes_from_any_number_of_threads(tmp_path, slab):
    make_all(tmp_path / "folder")
    assert packed(tmp_path / "folder") == packed(tmp_path / "folder", threads=4)


def test_any_bytes_of_a_file(tmp_path, slab):
    make_all(tmp_path / "folder")
    archive = Archive(packed(tmp_path / "folder"))
    generator = np.random.default_rng(0)
    for name, whole in contents_of(tmp_path / "folder").items():
        assert archive.read(name).tobytes() == whole
        for _ in range(12):
            start, stop = sorted(generator.integers(0, len(whole) + 1, 2).tolist())
            assert archive.read(name, start, stop - start).tobytes() == whole[start:stop]
        for start, size in ((-1, 1), (0, len(whole) + 1), (len(whole) + 1, 0), (0, -1)):
            with pytest.raises(UsageError, match="bytes"):
                archive.read(name, start, size)


def test_tensors_and_rows_of_them(tmp_path, slab):
    MAKERS["model.safetensors"][0](tmp_path / "a.safetensors")
    archive = Archive(packed(tmp_path / "a.safetensors"))
    for name, expected in load_file(tmp_path / "a.safetensors").items():
        assert torch.equal(from_raw(*archive.tensor(name)), expected)
        if expected.ndim:
            for rows in (slice(2, 7), slice(-3, None), slice(5, 5), slice(9, 3)):
                found = from_raw(*archive.tensor(name, rows=rows))
                assert torch.equal(found, expected[rows])
    with pytest.raises(UsageError, match="steps of 2"):
        archive.tensor("layers.0.weight", rows=slice(0, 9, 2))
    with pytest.raises(UsageError, match="found none"):
        archive.tensor("layers.9.weight")


def test_a_name_in_two_files(tmp_path):
    for name in ("a", "b"):
        save_file({"weight": weights(70, 50, seed=ord(name))}, tmp_path / f"{name}.safetensors")
    archive = Archive(packed(tmp_path))
    with pytest.raises(UsageError, match="found 2: say of which file"):
        archive.tensor("weight")
    found = from_raw(*archive.tensor("weight", path="b.safetensors"))
    assert torch.equal(found, weights(70, 50, seed=ord("b")))
    with pytest.raises(UsageError, match=r"a\.safetensors, b\.safetensors"):
        archive.tensor("weight", path="c.safetensors")


def test_equal_tensors_are_there_once(tmp_path):
    same, other = weights(90, 80), weights(90, 80, seed=1)
    save_file({"a": same, "b": other}, tmp_path / "a.safetensors")
    alone = len(packed(tmp_path))
    torch.save({"renamed": same, "b": same.clone()}, tmp_path / "b.pt")
    save_file({"a": torch.cat([same, other[:3]])}, tmp_path / "grown.safetensors")
    assert len(packed(tmp_path)) < alone + same.nbytes + 4000


def test_tensors_that_grew_share_their_first_objects(tmp_path, slab):
    rows = weights(500, 16)
    save_file({"a": rows[:400]}, tmp_path / "a.safetensors")
    alone = len(packed(tmp_path))
    save_file({"a": rows}, tmp_path / "b.safetensors")
    if slab <= 5000:
        assert len(packed(tmp_path)) - alone < 0.5 * rows.nbytes


class OneAtATime(io.RawIOBase):
    """A pipe that gives few bytes at a time."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def readable(self):
        return True

    def readinto(self, into):
        count = min(len(into), 1 + self.at % 777, len(self.data) - self.at)
        into[:count] = self.data[self.at : self.at + count]
        self.at += count
        return count


@pytest.mark.parametrize("name", MAKERS)
def test_pipes(tmp_path, slab, name):
    MAKERS[name][0](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    out = io.BytesIO()
    writer = ArchiveWriter(out)
    stored = writer.add(piped(OneAtATime(data), "data"))
    writer.close(folder=False)
    assert unpacked(out.getvalue()) == {"data": data}
    assert (stored.kind == "safetensors") == (name == "model.safetensors")


def test_a_pipe_that_ends_within_a_tensor(tmp_path):
    MAKERS["model.safetensors"][0](tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    with pytest.raises(CorruptFile, match="truncated"):
        ArchiveWriter(io.BytesIO()).add(piped(io.BytesIO(data[:-5]), "data"))


def test_a_file_that_became_shorter(tmp_path):
    MAKERS["noise.bin"][0](tmp_path / "a")
    with opened("a", tmp_path / "a") as file:
        (tmp_path / "a").write_bytes(b"short")
        with pytest.raises(CorruptFile, match="a: 10001 bytes expected at 0, found 5"):
            ArchiveWriter(io.BytesIO()).add(file)


def test_damage_is_seen(tmp_path, slab):
    make_all(tmp_path / "folder")
    data, expected = packed(tmp_path / "folder"), contents_of(tmp_path / "folder")
    for position in np.linspace(0, len(data) - 1, 200).astype(int).tolist():
        altered = bytearray(data)
        altered[position] ^= 0x10
        try:
            archive = Archive(bytes(altered))
        except CorruptFile:
            continue
        for name, whole in expected.items():
            try:
                assert b"".join(archive.chunks(name)) == whole
            except CorruptFile:
                continue


def forged(tmp_path, change):
    """An archive whose objects were changed by someone who knows the format."""
    make_all(tmp_path / "folder")
    reader = IndexedReader(packed(tmp_path / "folder"))
    stream = io.BytesIO()
    with IndexedWriter(stream) as writer:
        for name in reader.names():
            writer.add(name, change(name, reader.read(name)))
        writer.close(laconic_archive=1, folder=True)
    return stream.getvalue()


def test_objects_that_are_not_what_they_are_called(tmp_path, slab):
    def change(name, payload):
        return payload[:1] + b"?" + payload[2:] if payload[0] == 0 and len(payload) > 1 else payload

    archive = Archive(forged(tmp_path, change))
    with pytest.raises(CorruptFile, match=r"noise\.bin: its bytes are not those that were stored"):
        list(archive.chunks("noise.bin"))
    with pytest.raises(CorruptFile, match="not those of its name"):
        archive.read("noise.bin", 5, 7)


def test_what_is_no_archive():
    stream = io.BytesIO()
    with IndexedWriter(stream) as writer:
        writer.add("some", b"thing")
    with pytest.raises(CorruptFile, match="no archive"):
        Archive(stream.getvalue())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8])
def test_manifests_that_cannot_be(tmp_path, content):
    data = forged(tmp_path, lambda name, payload: content if name == "manifest" else payload)
    with pytest.raises(CorruptFile, match="manifest"):
        Archive(data)


def test_an_unknown_engine():
    with pytest.raises(UsageError, match="huffman, rans"):
        ArchiveWriter(io.BytesIO(), engine="lzma")


@given(st.dictionaries(st.text("abc/", min_size=1, max_size=4), st.binary(max_size=50), max_size=5))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_files(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("any")
    for name, data in files.items():
        path = folder / name.strip("/").replace("/", "_")
        if path != folder and not path.exists():
            path.write_bytes(data)
    if any(folder.iterdir()):
        assert unpacked(packed(folder)) == contents_of(folder)
