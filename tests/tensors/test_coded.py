import pytest
import torch

from laconic.tensors import CodebookQuantizer, FloatQuantizer, IntQuantizer
from tests.tensors.strategies import same_bits


@pytest.mark.parametrize("quantizer", [IntQuantizer(), FloatQuantizer(), CodebookQuantizer(2, 2)])
def test_other_devices_decode_without_the_kernel(quantizer):
    value = quantizer.quantize(torch.randn(6, 16))
    moved = value.to("meta")
    assert moved.dense(torch.bfloat16).shape == (6, 16)
    index = torch.tensor([[1, 5]], device="meta")
    assert moved.rows(index, torch.float16).shape == (1, 2, 16)
    assert moved.rows(index).dtype == value.dtype


def test_rows_are_decoded_alone(monkeypatch):
    value = IntQuantizer(4, 8).quantize(torch.randn(6, 16))
    whole = value.dense()
    asked = []
    decode = type(value)._dense_by_kernel
    monkeypatch.setattr(
        type(value), "_dense_by_kernel", lambda v, i: (asked.append(i.tolist()), decode(v, i))[1]
    )
    assert same_bits(
        value.rows(torch.tensor([[4, 4], [0, 1]])), whole[[4, 4, 0, 1]].reshape(2, 2, 16)
    )
    assert asked == [[4, 4, 0, 1]]
