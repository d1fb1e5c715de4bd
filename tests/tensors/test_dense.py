import pytest
import torch
from torch.nn import functional as F

from laconic.tensors import Dense, dense


@pytest.mark.parametrize("step", [1, 4, 7, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_large_weights_are_widened_some_rows_at_a_time(monkeypatch, step, with_bias):
    weight, x = torch.randn(18, 5).half(), torch.randn(2, 3, 5)
    bias = torch.randn(18).half() if with_bias else None
    expected = F.linear(x, weight.float(), None if bias is None else bias.float())
    monkeypatch.setattr(dense, "WIDENED", 5 * step)
    if step < 18:
        monkeypatch.setattr(Dense, "dense", None)
    found = Dense(weight).matmul(x, bias if step < 18 or bias is None else bias.float())
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-5)


def test_widened_rows_pass_gradients_on(monkeypatch):
    monkeypatch.setattr(dense, "WIDENED", 10)
    weight, x = torch.randn(6, 5).bfloat16(), torch.randn(3, 5, requires_grad=True)
    Dense(weight).matmul(x).sum().backward()
    assert torch.allclose(x.grad, weight.float().sum(0).expand(3, 5), atol=1e-5)
