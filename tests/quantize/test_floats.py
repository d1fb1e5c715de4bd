import pytest
import torch

from laconic.errors import UsageError
from laconic.quantize.alphatuning import BCQ
from laconic.quantize.floats import Floats
from laconic.tensors import FloatQuantizer
from laconic.tensors.binary_quantizer import BinaryQuantizer


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "e4m3"])
def test_floats_are_their_quantizer(format):
    x = torch.randn(8, 64)
    expected = FloatQuantizer(format, None, "mse").project(x)
    assert torch.equal(Floats(format).compress_weight(x).dense(), expected)


def test_binary_coding_is_its_quantizer():
    x = torch.randn(8, 64)
    assert torch.equal(BCQ(2).compress_weight(x).dense(), BinaryQuantizer(2).project(x))


@pytest.mark.parametrize("method", [Floats(), BCQ()])
def test_stronger_options_lose_more(method):
    x = torch.randn(32, 256)
    values = [option.compress_weight(x) for option in method.options()]
    by_size = sorted(values, key=lambda v: v.resident_bytes)
    lost = [float((v.dense() - x).norm()) for v in by_size]
    assert lost[0] > 3 * lost[-1] and len(values) > 3


@pytest.mark.parametrize(
    "wrong",
    [lambda: Floats("fp5"), lambda: Floats("mxfp4", 16), lambda: BCQ(9), lambda: BCQ(group=3)],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError):
        wrong()
