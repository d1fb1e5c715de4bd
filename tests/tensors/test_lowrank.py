import pytest
import torch
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors import Dense, IntQuantizer, LowRank


def made(rows, rank, columns, kernel=()) -> LowRank:
    return LowRank(Dense(torch.randn(rows, rank)), Dense(torch.randn(rank, columns)), kernel)


def test_is_the_product():
    value = made(6, 2, 9)
    assert torch.equal(value.dense(), value.left.value @ value.right.value)
    assert (value.rank, value.shape, value.format) == (2, (6, 9), "rank 2 float32")
    assert value.resident_bytes == 4 * (6 * 2 + 2 * 9)


def test_kernels_of_convolutions():
    value = made(6, 2, 12, (2, 3))
    assert value.shape == (6, 2, 2, 3)
    assert torch.equal(value.dense().reshape(6, 12), value.left.value @ value.right.value)


def test_factors_of_unlike_formats():
    quantized = IntQuantizer(8, "row").quantize(torch.randn(4, 9))
    assert LowRank(Dense(torch.randn(6, 4)), quantized).format == "rank 4 float32 x int8 row"


@pytest.mark.parametrize("inputs", [1, 40, 400])
def test_multiplies_by_factors_where_that_is_less(inputs, monkeypatch):
    value, x, bias = made(32, 3, 48), torch.randn(inputs, 48), torch.randn(32)
    expected = F.linear(x, value.dense(), bias)
    monkeypatch.setattr(LowRank, "dense", None)
    assert torch.allclose(value.matmul(x, bias), expected, atol=1e-3)


def test_multiplies_dense_where_the_rank_is_high(monkeypatch):
    value, x = made(8, 8, 8), torch.randn(400, 8)
    monkeypatch.setattr(Dense, "matmul", None)
    assert torch.allclose(value.matmul(x), F.linear(x, value.dense()))


def test_rank_0():
    value = made(3, 0, 5)
    assert (value.dense() == 0).all() and (value.matmul(torch.randn(2, 5)) == 0).all()


@pytest.mark.parametrize(
    "left, right, kernel, match", [
        ((6, 2), (3, 9), (), "no product"), ((6,), (6, 9), (), "no product"),
        ((6, 2), (2, 9), (2,), "does not fit"), ((6, 2), (2, 9), (0,), "kernel's size"),
        ((6, 2), (2, 9), (1.5,), "kernel's size"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(left, right, kernel, match):
    with pytest.raises(UsageError, match=match):
        LowRank(Dense(torch.ones(left)), Dense(torch.ones(right)), kernel)
