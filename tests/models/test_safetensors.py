import json
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.models.safetensors import find_shards, read_header, read_headers, read_tensor
from laconic.tensors.dtypes import BY_NAME, name_of
from tests.tensors.strategies import raw_tensors, same_bits

FILES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start, stop, shape, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6), raw_tensors(tuple(BY_NAME.values())), max_size=6
    )
)
@FILES
def test_reads_what_the_library_wrote(tmp_path, tensors):
    """0-d, empty and strided ones, of every dtype."""
    tensors.pop("__metadata__", None)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    entries = read_header(path)
    assert set(entries) == set(tensors)
    with safe_open(path, "pt") as file:
        for name, expected in tensors.items():
            found = read_tensor(entries[name])
            assert same_bits(found, expected)
            assert same_bits(found, file.get_tensor(name))
            assert entries[name].shape == tuple(expected.shape)
            assert (entries[name].dtype, entries[name].size) == (
                name_of(expected.dtype), expected.nbytes,
            )  # fmt: skip


def test_tensors_own_their_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    tensor = read_tensor(read_header(path)["a"])
    path.write_bytes(b"\0" * path.stat().st_size)
    assert (tensor == 1).all()
    tensor += 1  # writable


def test_truncated_at_every_length(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    save_file({"a": torch.arange(9.0), "b": torch.zeros(3, dtype=torch.int8)}, whole)
    content = whole.read_bytes()
    for length in range(len(content)):
        part.write_bytes(content[:length])
        with pytest.raises(CorruptFile, match="part"):
            read_header(part)


def test_truncated_after_the_header_was_read(tmp_path):
    path = tmp_path / "x"
    save_file({"a": torch.arange(9.0)}, path)
    found = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="truncated"):
        read_tensor(found)


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"[" * 5000, b"{}garbage",
        {"a": 1}, {"a": None}, {"a": []}, {"a": {}},
        {"a": {"dtype": "U8", "shape": [1]}},
        {"a": {"dtype": "U8", "data_offsets": [0, 1]}},
        {"a": {"shape": [1], "data_offsets": [0, 1]}},
        {"a": entry(0, 1, [1], "X8")},
        {"a": entry(0, 1, [2])},
        {"a": entry(0, 4, [2], "F32")},
        {"a": entry(0, 1, 1)},
        {"a": entry(0, 1, ["x"])},
        {"a": entry(0, 1, [-1])},
        {"a": entry(0, 1, [-1, -1])},
        {"a": entry(-1, 0, [1])},
        {"a": entry(4, 2, [2])},
        {"a": entry(1, 0, [0])},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": "01"}},
        {"a": entry(7, 9, [2])},
        {"a": entry(2**40, 2**40 + 1, [1])},
        {"a": entry(0, 2**62, [2**62])},
        {"a": entry(0, 2**70, [2**70])},
        {"a": entry(0, 2**64, [2**32, 2**32])},
        {"a": entry(0, 4, [4]), "b": entry(3, 5, [2])},
        {"a": entry(0, 4, [4]), "b": entry(0, 4, [4])},
        {"a": entry(0, 8, [8]), "b": entry(2, 3, [1])},
    ],
    ids=str,
)  # fmt: skip
def test_headers_that_lie(tmp_path, header):
    with pytest.raises(CorruptFile, match=r"x\.safetensors"):
        read_header(write(tmp_path / "x.safetensors", header, bytes(8)))


def test_shapes_that_no_tensor_has(tmp_path):
    path = write(tmp_path / "x", {"a": entry(0, 0, [0, 2**70])})
    with pytest.raises(CorruptFile):
        read_tensor(read_header(path)["a"])


def test_header_longer_than_allowed(tmp_path):
    path = tmp_path / "x"
    for length in (2**63, 2**64 - 1, 101 << 20, 100):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CorruptFile):
            read_header(path)


@given(st.data())
@FILES
def test_damaged_headers_never_reach_outside_the_file(tmp_path, data):
    path = tmp_path / "x"
    save_file({"a": torch.arange(9.0), "b": torch.zeros(3, 2, dtype=torch.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 160))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for found in read_header(path).values():
            assert found.start + found.size <= len(content)
            assert read_tensor(found).nbytes == found.size
    except CorruptFile:
        pass


def test_metadata_is_no_tensor(tmp_path):
    path = write(tmp_path / "x", {"__metadata__": {"a": "b"}, "t": entry(0, 2, [2])}, b"\1\2")
    assert list(read_header(path)) == ["t"]
    assert read_tensor(read_header(path)["t"]).tolist() == [1, 2]


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
        save_file({"b": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
        return tmp_path

    def index(self, folder, weight_map):
        text = json.dumps({"weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)

    def test_by_the_index(self, folder):
        save_file({"c": torch.ones(1)}, folder / "training_state.safetensors")
        self.index(
            folder,
            {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        )
        assert set(read_headers(find_shards(folder))) == {"a", "b"}

    def test_without_an_index_all_are_taken(self, folder):
        assert set(read_headers(find_shards(folder))) == {"a", "b"}

    def test_one_that_is_missing_is_named(self, folder):
        self.index(folder, {"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"})
        with pytest.raises(UnsupportedModel, match=r"gone\.safetensors"):
            find_shards(folder)

    def test_the_index_does_not_lead_out_of_the_folder(self, folder):
        inner = folder / "inner"
        inner.mkdir()
        self.index(inner, {"a": "../model-00001-of-00002.safetensors"})
        with pytest.raises(UnsupportedModel):
            find_shards(inner)

    def test_a_name_in_two_shards(self, folder):
        shutil.copy(
            folder / "model-00001-of-00002.safetensors", folder / "model-00003-of-00003.safetensors"
        )
        with pytest.raises(CorruptFile, match="a is in"):
            read_headers(find_shards(folder))

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\0"]
    )
    def test_index_that_cannot_be_read(self, folder, text):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CorruptFile, match="index"):
            find_shards(folder)

    def test_pickles_are_named_not_opened(self, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
        with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin is a pickle"):
            find_shards(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UnsupportedModel, match=r"no \*\.safetensors"):
            find_shards(tmp_path)
