import numpy as np
import pytest
import torch
from hypothesis import given

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.tensors.dtypes import BY_NAME, NAMES, from_raw, name_of, to_raw
from tests.tensors.strategies import raw_tensors, same_bits


@given(raw_tensors(tuple(BY_NAME.values())))
def test_raw_round_trip(tensor):
    raw = to_raw(tensor)
    assert raw.dtype == np.uint8 and raw.size == tensor.nbytes
    back = from_raw(raw, name_of(tensor.dtype), tuple(tensor.shape))
    assert same_bits(back, tensor)


def test_names_are_those_of_safetensors(tmp_path):
    from safetensors.torch import save_file

    from laconic.models.safetensors import read_header

    tensors = {name: torch.zeros(2, dtype=dtype) for name, dtype in BY_NAME.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert {k: e.dtype for k, e in read_header(tmp_path / "x.safetensors").items()} == {
        name: name for name in BY_NAME
    }
    assert len(NAMES) == len(BY_NAME)


def test_strided_and_gradient_tensors_are_copied_out():
    x = torch.randn(4, 6, requires_grad=True)
    assert to_raw(x.T).tobytes() == x.detach().T.contiguous().numpy().tobytes()


def test_memory_is_owned_unless_taken_over():
    raw = np.zeros(8, np.uint8)
    owned, taken = from_raw(raw, "U8", (8,)), from_raw(raw, "U8", (8,), copy=False)
    raw[0] = 7
    assert (owned[0], taken[0]) == (0, 7)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", (2,), 7), ("F32", (), 0), ("BF16", (3, 3), 17), ("I5", (1,), 1), ("F32", (0,), 4),
        ("U8", (0, 2**70), 0), ("U8", (0, 2**62, 4), 0), ("U8", (2**62,), 8),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit(dtype, shape, size):
    with pytest.raises(CorruptFile):
        from_raw(np.zeros(size, np.uint8), dtype, shape)


def test_dtypes_without_a_name():
    with pytest.raises(UnsupportedModel, match="complex64"):
        name_of(torch.complex64)
