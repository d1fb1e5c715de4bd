import pytest
import torch
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors import Additive


def made(rows=40, columns=22, count=2, bits=5, length=4, dtype=torch.float32) -> Additive:
    generator = torch.Generator().manual_seed(0)
    vectors = -(-columns // length)
    codes = torch.randint(0, 2**bits, (rows, vectors, count), generator=generator)
    codebooks = torch.randn(count, 2**bits, length, generator=generator)
    scale = torch.rand(rows, generator=generator)
    return Additive.from_codes(
        codes, codebooks, scale, shape=torch.Size((rows, columns)), dtype=dtype
    )


def test_is_what_the_formula_says():
    value = made(6, 10)
    codes = value.codes().long()
    assert codes.shape == (6, 3, 2)
    for r in range(6):
        row = torch.cat([
            value.codebooks[0, codes[r, v, 0]] + value.codebooks[1, codes[r, v, 1]] for v in range(3)
        ])  # fmt: skip
        assert torch.equal(value.dense()[r], (row * value.scale[r])[:10])


def test_bits_in_memory():
    value = made(64, 128, 2, 8, 8)
    assert value.resident_bytes == 64 * 128 * 2 // 8 + 2 * 256 * 8 * 4 + 64 * 4
    assert (value.bits, value.format, value.code_per_weight) == (8, "additive 2x8 g8", False)


@pytest.mark.parametrize("inputs", [0, 1, 2, 8, 9])
def test_looks_products_up_for_few_inputs(inputs, monkeypatch):
    """8 inputs times 32 entries are as many as there are rows; 9 are not looked up."""
    value, x, bias = made(256), torch.randn(inputs, 22), torch.randn(256)
    expected = F.linear(x, value.dense(), bias)
    with monkeypatch.context() as patch:
        if inputs <= 8:
            patch.setattr(Additive, "dense", None)
        y = value.matmul(x, bias)
    assert y.shape == expected.shape and torch.allclose(y, expected, atol=1e-4)
    wide = x.bfloat16()
    y = value.matmul(wide)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), F.linear(wide.float(), value.dense()), atol=0.1, rtol=0.02)


def test_inputs_that_want_gradients_are_multiplied():
    value, x = made(256), torch.randn(1, 22, requires_grad=True)
    value.matmul(x).sum().backward()
    assert torch.allclose(x.grad[0], value.dense().sum(0), atol=1e-4)


def test_parts_that_do_not_fit():
    value = made()
    packed = value.packed
    for codebooks, scale, match in [
        (torch.zeros(32, 4), value.scale, "must be"),
        (torch.zeros(2, 32, 0), value.scale, "must be"),
        (torch.zeros(2, 33, 4), value.scale, "power of two"),
        (torch.zeros(2, 1, 4), value.scale, "power of two"),
        (torch.zeros(3, 32, 4), value.scale, "codes of 5 bits"),
        (value.codebooks, value.scale[1:], "scale must be"),
    ]:
        with pytest.raises(UsageError, match=match):
            Additive(value.shape, torch.float32, packed, codebooks, scale)
