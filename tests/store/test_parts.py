"""Which bytes of a file are which tensor."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from laconic.errors import CorruptFile
from laconic.store.parts import read_contents
from laconic.tensors.dtypes import from_raw
from tests.store.files import MAKERS


def contents(path):
    with path.open("rb") as file:
        return read_contents(file, path.stat().st_size, str(path))


def tensors(path):
    """Those that are found, by name."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return {
        part.name: from_raw(data[part.start : part.start + part.size], part.dtype, part.shape)
        for part in contents(path).parts
        if part.name is not None
    }


@pytest.mark.parametrize("name", MAKERS)
def test_parts_cover_every_file(tmp_path, name):
    make, kind = MAKERS[name]
    make(tmp_path / name)
    found = contents(tmp_path / name)
    assert found.kind == kind
    end = 0
    for part in found.parts:
        assert part.start == end
        end += part.size
    assert end == (tmp_path / name).stat().st_size
    assert any(part.name is not None for part in found.parts) == (kind != "other")


def test_safetensors(tmp_path):
    MAKERS["model.safetensors"][0](tmp_path / "a.safetensors")
    found, expected = tensors(tmp_path / "a.safetensors"), load_file(tmp_path / "a.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoints(tmp_path):
    MAKERS["checkpoint.pt"][0](tmp_path / "a.pt")
    found, expected = tensors(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(found["model.weight"], expected["model"]["weight"])
    first = expected["optimizer"]["state"][0]
    assert all(torch.equal(found[f"optimizer.state.0.{name}"], first[name]) for name in first)


def test_arrays(tmp_path):
    MAKERS["some.npz"][0](tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as expected:
        found = tensors(tmp_path / "a.npz")
        assert found["first"].numpy().tolist() == expected["first"].tolist()
        assert found["second"].numpy().view(">i4").tolist() == expected["second"].tolist()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("<f2", "F16"),
        ("<f8", "F64"),
        ("|b1", "BOOL"),
        ("<u8", "U64"),
        ("<c8", "C64"),
        ("|i1", "I8"),
    ],
)
def test_dtypes_of_arrays(tmp_path, dtype, name):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), dtype))
    (part,) = [p for p in contents(tmp_path / "a.npy").parts if p.name is not None]
    assert (part.dtype, part.shape) == (name, (2, 3))


@pytest.mark.parametrize("dtype", ["U5", "<M8[s]", "<c16", "<f2,<i4"])
def test_arrays_of_what_no_tensor_holds(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros(3, dtype))
    assert contents(tmp_path / "a.npy").kind == "other"


def test_a_damaged_safetensors_file_is_refused_by_its_name_only(tmp_path):
    MAKERS["model.safetensors"][0](tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()[:-1]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CorruptFile, match=r"a\.safetensors: tensor .*truncated"):
        contents(tmp_path / "a.safetensors")
    (tmp_path / "a.part").write_bytes(data)
    assert contents(tmp_path / "a.part").kind == "other"


def test_safetensors_under_another_name(tmp_path):
    MAKERS["model.safetensors"][0](tmp_path / "blob")
    assert contents(tmp_path / "blob").kind == "safetensors"


def test_gaps_between_tensors(tmp_path):
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"...ab..")
    parts = contents(tmp_path / "a").parts
    assert [(p.size, p.name) for p in parts] == [(8 + len(header) + 3, None), (2, "a"), (2, None)]


def test_a_pickle_that_is_not_understood_leaves_storages_without_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"garbage")
        archive.writestr("a/data/0", bytes(24))
    named = [p for p in contents(tmp_path / "a.pt").parts if p.name is not None]
    assert [(p.name, p.dtype, p.shape) for p in named] == [("a/data/0", "U8", (24,))]


def test_members_in_one_place(tmp_path):
    """Two members whose headers are one: no file that a zip writer makes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/data/0", bytes(24))
        archive.infolist()[0].header_offset = archive.infolist()[1].header_offset
        archive.infolist()[0].file_size = 24
    (tmp_path / "a.pt").write_bytes(file.getvalue())
    parts = contents(tmp_path / "a.pt").parts
    assert sum(part.size for part in parts) == len(file.getvalue())


@pytest.mark.parametrize("name", ["checkpoint.pt", "some.npz"])
def test_zip_files_without_their_beginning(tmp_path, name):
    """Their directory then points before the file."""
    MAKERS[name][0](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    data = b"PK\3\4" + whole[len(whole) // 3 :]
    found = read_contents(io.BytesIO(data), len(data), name)
    assert (found.kind, [part.size for part in found.parts]) == ("other", [len(data)])


class Samples(list):
    """Does not print megabytes where a test fails."""

    def __repr__(self):
        return "samples"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    for name in ("checkpoint.pt", "some.npz", "one.npy", "model.safetensors"):
        MAKERS[name][0](folder / name)
    return Samples(path.read_bytes() for path in sorted(folder.iterdir()))


@given(st.integers(0, 3), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), st.floats(0, 1))  # fmt: skip
@settings(max_examples=300)
def test_altered_files_are_covered_too(samples, which, changes, kept):
    """Most changes where formats keep what they say of themselves: at both ends."""
    data = bytearray(samples[which])
    for place, byte in changes:
        position = int(place * 600) if byte % 2 else len(data) - 1 - int(place * 600)
        data[position % len(data)] = byte
    data = data[: len(data) if kept > 0.3 else int(kept * len(data))]
    found = read_contents(io.BytesIO(bytes(data)), len(data), "some")
    assert sum(part.size for part in found.parts) == len(data)
    assert min((part.size for part in found.parts), default=0) >= 0
