import pytest
import torch
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors import Dense, Hadamard, IntQuantizer, LowRank, Sum, Transformed


def test_a_coarse_weight_and_its_correction():
    weight = torch.randn(16, 32)
    coarse = IntQuantizer(3, 16).quantize(weight)
    u, s, v = torch.linalg.svd(weight - coarse.dense())
    lost = []
    for rank in (0, 4, 16):
        rest = LowRank(Dense(u[:, :rank] * s[:rank]), Dense(v[:rank]))
        value = Sum((coarse, rest))
        lost.append(float((value.dense() - weight).square().sum()))
        assert value.resident_bytes == coarse.resident_bytes + rest.resident_bytes
        x = torch.randn(3, 32)
        assert torch.allclose(value.matmul(x), F.linear(x, value.dense()), atol=1e-4)
    assert lost == sorted(lost, reverse=True) and lost[-1] < 1e-6
    assert value.format == "int3 g16 + rank 16 float32"


def test_the_dtype_is_that_of_the_first():
    value = Sum((Dense(torch.ones(2, 3).bfloat16()), Dense(torch.full((2, 3), 1e-4))))
    assert value.dtype == torch.bfloat16
    assert (value.dense(torch.float32) == 1 + 1e-4).all()  # parts are added before they are rounded


def test_another_basis():
    weight = torch.randn(8, 32)
    weight[:, 5] *= 40  # an outlier channel, which the transform spreads
    transform = Hadamard.random(32, 3)
    quantizer = IntQuantizer(4, "row", True, "mse")
    value = Transformed(quantizer.quantize(transform.fold(weight)), transform)
    assert (value.dense() - weight).norm() < (quantizer.project(weight) - weight).norm()
    x = torch.randn(3, 32)
    assert torch.allclose(value.matmul(x), F.linear(x, value.dense()), atol=1e-3)
    assert value.format == "int4 row behind hadamard"
    assert value.resident_bytes == value.inner.resident_bytes + 32


def test_parts_that_do_not_fit():
    with pytest.raises(UsageError, match="one shape"):
        Sum((Dense(torch.ones(2, 3)), Dense(torch.ones(3, 2))))
    with pytest.raises(UsageError, match="one shape"):
        Sum(())
    for shape in ((4,), (4, 16)):
        with pytest.raises(UsageError, match="does not fit"):
            Transformed(Dense(torch.ones(shape)), Hadamard.random(32, 0))
