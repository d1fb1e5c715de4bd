import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from laconic.errors import CorruptFile
from laconic.models.safetensors import Entry, read_header, read_tensor
from laconic.models.shards import ORDER, write_file
from laconic.tensors.dtypes import BY_NAME
from tests.tensors.strategies import raw_tensors, same_bits


def test_every_dtype_has_its_place():
    assert set(BY_NAME) <= set(ORDER)


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
files = st.dictionaries(
    names.filter(lambda n: n != "__metadata__"), raw_tensors(tuple(BY_NAME.values())), max_size=6
)


@given(files)
def test_the_bytes_of_the_library(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("shards")
    save_file(tensors, folder / "library", metadata={"format": "pt"})
    write_file(folder / "memory", tensors)
    assert (folder / "memory").read_bytes() == (folder / "library").read_bytes()
    write_file(folder / "files", read_header(folder / "memory"))
    assert (folder / "files").read_bytes() == (folder / "library").read_bytes()


def test_tensors_of_several_files(tmp_path):
    tensors = {f"t{n}": torch.randn(3 + n) for n in range(4)}
    write_file(tmp_path / "a", {k: tensors[k] for k in ("t0", "t3")})
    write_file(tmp_path / "b", {k: tensors[k] for k in ("t1", "t2")})
    write_file(tmp_path / "c", read_header(tmp_path / "b") | read_header(tmp_path / "a"))
    for name, entry in read_header(tmp_path / "c").items():
        assert same_bits(read_tensor(entry), tensors[name])


def test_a_file_that_is_shorter_than_it_said(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(CorruptFile, match="truncated"):
        write_file(tmp_path / "b", {"x": Entry(tmp_path / "a", "U8", (9,), 0, 9)})
