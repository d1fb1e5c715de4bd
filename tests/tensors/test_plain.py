"""The compiled kernels do what their Python does, and never leave their arrays."""

import pytest
import torch

from laconic.tensors import (
    BinaryQuantizer,
    Bitmask,
    CodebookQuantizer,
    FloatQuantizer,
    IntQuantizer,
    NofM,
    additive,
    binary,
    codebook,
    grouped,
    grouped_float,
    masks,
    nofm,
)
from tests.plain import check_same
from tests.tensors.test_additive import made

WEIGHT = torch.randn(6, 21, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([5, 0, 0, 3])


def rows(value):
    return lambda: [value.dense(), value.rows(INDEX)]


@pytest.mark.parametrize(
    "quantizer",
    [
        IntQuantizer(3, 8), IntQuantizer(4, "tensor"), IntQuantizer(5, "row", False),
        IntQuantizer(8, 8, False),
    ],
)  # fmt: skip
def test_integers(quantizer):
    check_same(grouped, "_dequantize", rows(quantizer.quantize(WEIGHT)))


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "e4m3"])
def test_floats(name):
    check_same(grouped_float, "_look_up", rows(FloatQuantizer(name).quantize(WEIGHT)))


@pytest.mark.parametrize("settings", [{}, {"rows_per_group": 2, "columns_per_group": 8}])
@pytest.mark.parametrize("scale_block", [None, 4])
def test_codebooks(settings, scale_block):
    value = CodebookQuantizer(1.5, 2, **settings, scale_block=scale_block).quantize(WEIGHT)
    check_same(codebook, "_look_up", rows(value))


@pytest.mark.parametrize("settings", [{"bits": 3}, {"bits": 2, "group": 8, "offset": True}])
def test_signs(settings):
    value, x = BinaryQuantizer(**settings).quantize(WEIGHT), torch.randn(2, 21)
    check_same(binary, "_add_signs", rows(value))
    check_same(binary, "_look_up_sums", lambda: [value.matmul(x), value.matmul(x[0], x[0, :6])])


def test_sums_of_codebooks():
    value, x = made(40, 22), torch.randn(1, 22)
    check_same(additive, "_add_up", rows(value))
    check_same(additive, "_look_up_products", lambda: [value.matmul(x)])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_any_mask(share):
    """In chunks of 64 places, the last of which is not full."""
    mask = Bitmask.of(torch.rand(9, 21) < share)
    values = torch.randn(mask.kept)
    check_same(masks, "_scatter_bits", lambda: [mask.scatter(values)], CHUNK=64)


@pytest.mark.parametrize(("n", "m", "columns"), [(2, 4, 16), (2, 4, 21), (3, 8, 18), (1, 1, 5)])
def test_runs(n, m, columns):
    keep = (torch.arange(columns) % m < n).repeat(5, 1)
    mask = NofM.of(keep, n, m)
    values = torch.randn(mask.kept).bfloat16()
    check_same(nofm, "_scatter_runs", lambda: [mask.scatter(values)])
