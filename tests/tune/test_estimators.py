import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from laconic.errors import UsageError
from laconic.tune.estimators import (
    clipped_round,
    fake_quantize,
    lsq_quantize,
    lsq_scale,
    scale_gradient,
    ste_round,
    ste_sign,
    ste_sparse,
)  # fmt: skip

DOUBLE = torch.float64


def draws(seed, *shape, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=DOUBLE)


def grads(y, *inputs):
    return torch.autograd.grad(y.sum(), inputs, allow_unused=True)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1))
def test_rounding_is_exact_forward_and_the_identity_backward(values):
    x = torch.tensor(values, requires_grad=True)
    assert torch.equal(ste_round(x), x.detach().round())
    assert torch.equal(grads(ste_round(x), x)[0], torch.ones_like(x))


def test_clipped_round():
    x = torch.tensor([-9.0, -2.4, 0.5, 1.5, 3.6, 3.9], requires_grad=True)
    y = clipped_round(x, -2, 3)
    assert y.tolist() == [-2, -2, 0, 2, 3, 3]
    assert grads(y, x)[0].tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sign(dtype):
    x = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5], dtype=dtype, requires_grad=True)
    y = ste_sign(x)
    assert y.dtype == dtype and y.tolist() == [-1, -1, 1, 1, 1, 1]
    assert grads(y, x)[0].tolist() == [0, 1, 1, 1, 1, 0]
    assert grads(ste_sign(x, math.inf), x)[0].tolist() == [1] * 6
    with pytest.raises(UsageError):
        ste_sign(x, 0.0)


def smooth(x, scale, zero, low, high):
    """`fake_quantize` with what rounding adds taken as a constant: its gradients are true ones."""
    shift = ((x / scale).round() - x / scale).detach()
    offset = zero + (zero.round() - zero).detach()
    return ((x / scale + shift + offset).clamp(low, high) - offset) * scale


@pytest.mark.parametrize("shape", [(1,), (4, 1), (4, 6)])
def test_gradients_are_those_with_rounding_held_constant(shape):
    x = draws(0, 4, 6).requires_grad_()
    scale = (0.3 + draws(1, *shape).abs() / 3).requires_grad_()
    zero = draws(2, *shape, scale=1.0).requires_grad_()
    found = grads(fake_quantize(x, scale, zero, -4, 3), x, scale, zero)
    expected = grads(smooth(x, scale, zero, -4, 3), x, scale, zero)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected))
    assert torch.equal(fake_quantize(x, scale, zero, -4, 3), smooth(x, scale, zero, -4, 3))


def test_the_constant_form_passes_gradcheck():
    x = draws(3, 3, 4).requires_grad_()
    scale = (0.4 + draws(4, 3, 1).abs() / 3).requires_grad_()
    shift = ((x / scale).round() - x / scale).detach()

    def held(x, scale):
        return (x / scale + shift).clamp(-4, 3) * scale

    assert gradcheck(held, (x, scale), eps=1e-7, atol=1e-5)
    assert all(
        torch.allclose(a, b)
        for a, b in zip(grads(held(x, scale), x, scale), grads(fake_quantize(x, scale, 0, -4, 3), x, scale))
    )  # fmt: skip


def test_the_scales_gradient_is_equation_3():
    """-v/s + round(v/s) inside, -Qn and Qp outside."""
    x = torch.tensor([-9.0, -0.7, 0.2, 1.9, 9.0], dtype=DOUBLE)
    scale = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    v = x / 0.5
    expected = torch.where(v <= -4, -4.0, torch.where(v >= 7, 7.0, v.round() - v)).sum()
    assert torch.allclose(grads(fake_quantize(x, scale, 0, -4, 7), scale)[0], expected)
    (lsq,) = grads(lsq_quantize(x, scale, -4, 7), scale)
    assert torch.allclose(lsq, expected / math.sqrt(5 * 7))


def test_lsq_shares_by_group():
    x, scale = draws(5, 4, 8), torch.ones(4, 1, dtype=DOUBLE, requires_grad=True)
    plain = grads(fake_quantize(x, scale, 0, -4, 3), scale)[0]
    assert torch.allclose(grads(lsq_quantize(x, scale, -4, 3), scale)[0], plain / math.sqrt(8 * 3))
    assert torch.allclose(lsq_scale(x, 3, dim=1), 2 * x.abs().mean(1, keepdim=True) / math.sqrt(3))
    assert lsq_scale(torch.zeros(3), 3) > 0 and lsq_scale(x, 3).ndim == 0


@given(st.integers(0, 99), st.integers(2, 8))
def test_values_lie_on_the_grid(seed, bits):
    x, scale = draws(seed, 20).float(), torch.tensor(0.25)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = fake_quantize(x, scale, 0, low, high) / scale
    assert torch.equal(codes, (x / scale).round().clamp(low, high))


def test_dtypes_and_numbers():
    x = torch.randn(3, dtype=torch.bfloat16, requires_grad=True)
    y = fake_quantize(x, torch.tensor(0.1), 1.0, 0, 15)
    assert y.dtype == torch.bfloat16 and grads(y, x)[0].dtype == torch.bfloat16


def test_scale_gradient_twice():
    x = draws(6, 3).requires_grad_()
    assert gradcheck(lambda x: scale_gradient(x, 1.0), (x,))
    assert torch.equal(grads(scale_gradient(x, 0.25), x)[0], torch.full_like(x, 0.25))


def test_bad_settings():
    with pytest.raises(UsageError):
        fake_quantize(torch.ones(1), torch.ones(1), 0, 3, 3)
    with pytest.raises(UsageError):
        lsq_quantize(torch.ones(1), torch.ones(1), -1, 0)


@pytest.mark.parametrize(
    "backward, passes",
    [
        ("kept", [1, 1, 0, 0, 0]), ("all", [1, 1, 1, 1, 1]), ("near", [1, 1, 1, 0, 0]),
        ("banded", [1, 1, 0, 1, 1]),
    ],
)  # fmt: skip
def test_sparse(backward, passes):
    x = torch.tensor([-4.0, 3.0, 2.0, -1.5, 0.1], requires_grad=True)
    y = ste_sparse(x, 0.4, backward)
    y.sum().backward()
    assert y.tolist() == [-4, 3, 0, 0, 0] and x.grad.tolist() == passes


def test_sparse_of_equals_and_settings():
    x = torch.ones(2, 4)
    assert int((ste_sparse(x, 0.5) != 0).sum()) == 4
    assert ste_sparse(torch.zeros(0), 0.5).shape == (0,)
    for settings in ({"share": 0}, {"share": 1.1}, {"band": 2.0}, {"backward": "some"}):
        with pytest.raises(UsageError):
            ste_sparse(x, **({"share": 0.5} | settings))
