import pytest
import torch
from torch.nn import functional as F

from laconic.tensors import Additive, CodebookQuantizer, IntQuantizer

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("products on a GPU need one", allow_module_level=True)

INTEGERS = [
    IntQuantizer(bits, group, symmetric)
    for bits in (2, 3, 4, 5, 8)
    for group in (24, 64, "row", "tensor")
    for symmetric in (True, False)
]
VECTORS = [
    CodebookQuantizer(bits, dim, scale_block=block)
    for bits, dim in ((4, 1), (2, 2), (2, 4), (5, 2), (1, 8))
    for block in (None, 64)
]


def additive(stages, bits, length):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (9, -(-250 // length), stages), generator=generator)
    tables = torch.randn(stages, 2**bits, length, generator=generator).bfloat16()
    scale = torch.rand(9, generator=generator).bfloat16()
    shape = torch.Size((9, 250))
    return Additive.from_codes(codes, tables, scale, shape=shape, dtype=torch.float32)


def agrees(value, dtype=torch.float32, inputs=3):
    x = torch.randn(inputs, value.shape[1], device="cuda", dtype=dtype)
    bias = torch.randn(value.shape[0], device="cuda", dtype=dtype)
    weight = value.dense(torch.float32).double()
    expected = F.linear(x.double(), weight, bias.double())
    room = F.linear(x.double().abs(), weight.abs(), bias.double().abs())
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    assert ((value.matmul(x, bias).double() - expected).abs() <= tolerance * room).all()


@pytest.mark.parametrize("quantizer", INTEGERS + VECTORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_values(quantizer, dtype):
    agrees(quantizer.quantize(torch.randn(10, 256)).to("cuda"), dtype)


@pytest.mark.parametrize("settings", [(1, 8, 4), (2, 8, 8), (3, 8, 8), (1, 12, 8), (2, 4, 2)])
def test_sums_of_vectors_with_a_cut_one(settings):
    agrees(additive(*settings).to("cuda"))


@pytest.mark.parametrize("columns", [12, 100])
def test_what_no_kernel_can_is_decoded(columns):
    agrees(IntQuantizer(3, "row").quantize(torch.randn(5, columns)).to("cuda"))


def test_gradients_reach_inputs():
    value = IntQuantizer(4, 64).quantize(torch.randn(8, 128)).to("cuda")
    x = torch.randn(1, 128, device="cuda", requires_grad=True)
    value.matmul(x).sum().backward()
    assert torch.allclose(x.grad[0], value.dense(torch.float32).sum(dim=0), atol=1e-4)
