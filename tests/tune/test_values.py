import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import CorruptFile, UsageError
from laconic.tune.values import read_values, write_values

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.bool, torch.int64, torch.uint8]
tensors = st.builds(
    lambda dtype, shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 9),
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
keys = st.one_of(st.integers(), st.text(max_size=4))
trees = st.recursive(
    st.one_of(scalars, tensors),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
)  # fmt: skip


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(trees)
def test_comes_back(tmp_path_factory, tree):
    file = tmp_path_factory.mktemp("values") / "new" / "x.lac"
    write_values(file, tree)
    assert same(read_values(file, "file"), tree)
    assert [p.name for p in file.parent.iterdir()] == ["x.lac"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    for bad in (object(), {(1, 2): 3}, [{1, 2}], torch.float32):
        with pytest.raises(UsageError, match="cannot be written"):
            write_values(tmp_path / "x.lac", [torch.ones(2), bad])
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path):
    file = tmp_path / "x.lac"
    write_values(file, {"a": torch.arange(9), 3: [1.5, None]})
    whole = file.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(CorruptFile, match=r"x\.lac: no table"):
            read_values(file, "table")
        file.write_bytes(whole[:place])
        with pytest.raises(CorruptFile):
            read_values(file, "table")
    with pytest.raises(CorruptFile, match="no table"):
        read_values(tmp_path / "none", "table")
