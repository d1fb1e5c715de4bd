"""Pickles are understood without being run."""

import collections
import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import CorruptFile
from laconic.store.pickles import Call, Named, Storage, read_pickle, read_storages


def saved(value):
    """The pickle that torch writes of `value`."""
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        return archive.read(name)


def plain(value):
    """Inert values as Python's."""
    if isinstance(value, Call):
        if value.pairs:
            return {key: plain(part) for key, part in value.pairs}
        return [plain(part) for part in value.items]
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, min_size=1, max_size=4)
        | st.tuples(inner, inner, inner, inner)
        | st.tuples(inner)
    ),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([2, 3, 4, 5]))
@settings(max_examples=200, deadline=None)
def test_plain_values_are_those_that_were_pickled(value, protocol):
    assert plain(read_pickle(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("size", [0, 3, 300])
def test_bytes(size):
    assert read_pickle(pickle.dumps(bytes(size), 4)) == bytes(size)


def test_values_of_the_first_protocols():
    assert plain(read_pickle(pickle.dumps([1, "a", {"b": 2.5}, True], 0))) == [
        1,
        "a",
        {"b": 2.5},
        True,
    ]
    assert plain(read_pickle(pickle.dumps([1, ("a", 3), 1 << 90], 1))) == [1, ("a", 3), 1 << 90]


def test_nothing_is_called(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    value = read_pickle(pickle.dumps([Harm()]))
    (call,) = value.items
    assert call.function == Named(os.mkdir.__module__, "mkdir")
    assert not (tmp_path / "harm").exists()


DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64", torch.uint16: "U16",
    torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    found = read_storages(saved({"layer": {"weight": torch.zeros(3, 5).to(dtype)}}))
    assert found == {"0": Storage(DTYPES[dtype], "layer.weight", (3, 5))}


def test_tensors_that_are_not_all_of_their_storage():
    base = torch.zeros(4, 6)
    found = read_storages(saved([base.t(), base[1:], base]))
    assert found == {"0": Storage("F32", "0", (24,))}
    assert read_storages(saved({"a": base[1:3]})) == {"0": Storage("F32", "a", (24,))}
    assert read_storages(saved({"a": torch.zeros(1, 3, 1)[:, :, 0]}))["0"].shape == (1, 3)


def test_optimizers_and_modules():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = read_storages(saved({"optimizer": optimizer.state_dict(), "model": model.state_dict()}))
    names = {storage.name: storage.shape for storage in found.values()}
    assert names["optimizer.state.0.exp_avg"] == (2, 3)
    assert names["optimizer.state.1.exp_avg_sq"] == (2,)
    assert names["optimizer.state.0.step"] == ()
    assert names["model.weight"] == (2, 3)
    whole = read_storages(saved(model))
    assert sorted(s.shape for s in whole.values()) == [(2,), (2, 3)]
    assert {s.name.rpartition(".")[2] for s in whole.values()} == {"weight", "bias"}


def test_lists_within_themselves():
    loop = [torch.zeros(2)]
    loop.append(loop)
    assert read_storages(saved({"loop": loop}))["0"].name == "loop.0"


def test_ordered_dictionaries_keep_their_order():
    value = collections.OrderedDict([("b", torch.zeros(1)), ("a", torch.zeros(2))])
    assert [s.name for s in read_storages(saved(value)).values()] == ["b", "a"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b".", b"t.", b"(.", b"\x80\x05R.", b"s.", b"h\x07.", b"\x85.", b"1.", b"(u.", b"a.",
        b"K\x01K\x02s.", b"garbage", b"\x80\x05X\xff\xff\xff\x7fabc.",
        pickle.dumps(np.zeros(2))[:-5], pickle.dumps(bytearray(b"a"), 5),
    ],
)  # fmt: skip
def test_what_is_no_pickle(damaged):
    with pytest.raises(CorruptFile, match="pickle"):
        read_pickle(damaged)


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_altered_pickles(noise, position, byte):
    whole = bytearray(saved({"a": torch.zeros(2, 3), "b": [torch.ones(1)]}))
    whole[position % len(whole)] = byte
    for data in (noise, bytes(whole)):
        with contextlib.suppress(CorruptFile):
            read_storages(data)
