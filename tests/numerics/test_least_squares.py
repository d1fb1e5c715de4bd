import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.least_squares import affine_regression, conjugate_gradient, ridge_regression
from tests.numerics.layers import layer


def data(tokens=300, inputs=6, outputs=4):
    x = torch.randn(tokens, inputs).double() * 0.5 + torch.randn(inputs).double()
    y = x @ torch.randn(inputs, outputs).double() + 3 + 0.1 * torch.randn(tokens, outputs)
    return x, y


def test_ridge_regression_is_least_squares():
    x, y = data()
    found = ridge_regression(x.T @ x, x.T @ y, ridge=0.0)
    assert torch.allclose(found, torch.linalg.lstsq(x, y).solution, atol=1e-9)
    lam = 0.1 * (x.T @ x).diagonal().mean()
    longer = torch.cat([x, lam.sqrt() * torch.eye(6)])
    padded = torch.cat([y, torch.zeros(6, 4)])
    want = torch.linalg.lstsq(longer, padded).solution
    assert torch.allclose(ridge_regression(x.T @ x, x.T @ y, ridge=0.1), want, atol=1e-9)


def test_affine_regression_is_least_squares_with_a_constant():
    x, y = data()
    q, b = affine_regression(x.T @ x / 300, x.T @ y / 300, x.mean(dim=0), y.mean(dim=0), 0.0)
    want = torch.linalg.lstsq(torch.cat([x, torch.ones(300, 1)], dim=1), y).solution
    assert torch.allclose(torch.cat([q, b[None]]), want, atol=1e-8)


def test_constant_inputs_get_no_weight():
    x, y = data()
    x[:, 2] = 5.3
    x[:, 4] = 0
    q, b = affine_regression(x.T @ x / 300, x.T @ y / 300, x.mean(dim=0), y.mean(dim=0))
    assert (q[[2, 4]] == 0).all()
    assert torch.allclose(x.mean(dim=0) @ q + b, y.mean(dim=0))


def test_linear_dependence_is_recovered():
    """Sheet 094: removed inputs that are linear in the kept ones lose nothing."""
    kept = torch.randn(400, 5).double()
    removed = kept @ torch.randn(5, 3).double() + 2
    q, b = affine_regression(
        kept.T @ kept / 400, kept.T @ removed / 400, kept.mean(0), removed.mean(0), 1e-9
    )
    assert torch.allclose(kept @ q + b, removed, atol=1e-6)


def quadratic(a, right, x):
    return (x * (a @ x) / 2 - right * x).sum(dim=0)


def test_conjugate_gradient_solves_and_never_rises():
    _, h = layer(2, 30, decay=1.0)
    right = torch.randn(30, 1).double()
    exact = torch.linalg.solve(h, right)
    before = torch.tensor([0.0]).double()
    for iterations in range(60):
        x = conjugate_gradient(lambda v: h @ v, right, iterations=iterations)
        value = quadratic(h, right, x)
        assert value <= before + 1e-9 * before.abs()
        before = value
    assert torch.allclose(x, exact, rtol=1e-5, atol=1e-6)


def test_a_start_is_used():
    _, h = layer(2, 10, decay=1.0)
    right = torch.randn(10, 3).double()
    exact = torch.linalg.solve(h, right)
    assert torch.equal(conjugate_gradient(lambda v: h @ v, right, exact, iterations=0), exact)
    near = conjugate_gradient(lambda v: h @ v, right, exact + 1e-3, iterations=30)
    assert (near - exact).norm() < 1e-6
    start = torch.zeros(10, 3)
    conjugate_gradient(lambda v: h @ v, right, start)
    assert (start == 0).all()


def test_problems_of_a_batch_take_their_own_steps():
    mats = torch.stack([layer(2, 8, decay=1.0, seed=s)[1] * 10.0**s for s in range(3)])
    right = torch.randn(3, 8, 1).double()
    many = conjugate_gradient(lambda v: mats @ v, right, iterations=8, batch_dims=1)
    for i in range(3):
        one = conjugate_gradient(lambda v, i=i: mats[i] @ v, right[i], iterations=8)
        assert torch.allclose(many[i], one, rtol=1e-9)
    diagonal = torch.tensor([2.0, 4.0])
    each = conjugate_gradient(lambda v: diagonal * v, torch.ones(2), iterations=1, batch_dims=1)
    assert torch.allclose(each, 1 / diagonal)


def test_stops_at_the_tolerance_and_where_nothing_curves():
    _, h = layer(2, 30, decay=1.0)
    calls = []

    def apply(v):
        calls.append(1)
        return h @ v

    right = torch.randn(30, 1).double()
    x = conjugate_gradient(apply, right, iterations=1000, tolerance=1e-3)
    assert (h @ x - right).norm() <= 1.001e-3 * right.norm()
    assert len(calls) < 200
    singular = torch.diag(torch.tensor([1.0, 0.0]))
    x = conjugate_gradient(lambda v: singular @ v, torch.tensor([2.0, 0.0]))
    assert x.tolist() == [2.0, 0.0]
    unbounded = conjugate_gradient(lambda v: 0 * v, torch.ones(2))
    assert unbounded.tolist() == [0.0, 0.0]
    assert conjugate_gradient(lambda v: v, torch.zeros(3)).tolist() == [0.0] * 3


def test_half_precision_is_computed_in_single():
    x = conjugate_gradient(lambda v: 2 * v, torch.ones(3, dtype=torch.bfloat16))
    assert x.dtype == torch.float32


def test_the_same_bits_on_any_number_of_threads(same_bits):
    _, h = layer(2, 300)
    right = torch.randn(300, 40).double()
    same_bits(lambda: ridge_regression(h, right))
    same_bits(lambda: conjugate_gradient(lambda v: h @ v, right, iterations=5))
    mean = torch.zeros(300), torch.zeros(40)
    same_bits(lambda: affine_regression(h, right, *mean))


def test_bad_input():
    x, y = data()
    h, cross, mx, my = x.T @ x / 300, x.T @ y / 300, x.mean(dim=0), y.mean(dim=0)
    for bad in (
        lambda: ridge_regression(h, cross[:3]),
        lambda: ridge_regression(h, cross, -0.1),
        lambda: affine_regression(h, cross, mx[:3], my),
        lambda: affine_regression(h, cross, mx, my[:3]),
        lambda: affine_regression(h[:, :3], cross, mx, my),
        lambda: affine_regression(h, cross[0], mx, my),
        lambda: conjugate_gradient(lambda v: v, mx, iterations=-1),
        lambda: conjugate_gradient(lambda v: v, mx, tolerance=-1.0),
        lambda: conjugate_gradient(lambda v: v, mx, batch_dims=2),
        lambda: conjugate_gradient(lambda v: v, mx, my),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (
        lambda: ridge_regression(h * torch.nan, cross),
        lambda: affine_regression(h, cross, mx * torch.nan, my),
        lambda: conjugate_gradient(lambda v: v, mx / 0),
    ):
        with pytest.raises(BadWeights):
            bad()
