import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics import svd
from laconic.numerics.cholesky import ridge_of
from laconic.numerics.svd import activation_svd, randomized_svd, truncated_svd, whitened_svd
from tests.numerics.layers import layer, output_loss

SHAPES = [(12, 20), (20, 12), (16, 16), (1, 5), (5, 1)]


def ridged(h, ridge):
    return h + ridge_of(h, ridge) * torch.eye(h.shape[-1], dtype=torch.float64)


def root(h):
    values, vectors = torch.linalg.eigh(h)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_loses_what_the_curve_says_and_that_is_the_least(shape):
    weight, h = layer(*shape)
    found = activation_svd(weight, h, ridge=0.0)
    bound = torch.linalg.svdvals(weight.double() @ root(h)).square()
    assert torch.allclose(found.energy, bound, rtol=1e-6, atol=1e-10)
    errors = found.errors()
    for rank in range(min(shape) + 1):
        a, b = found.factors(rank)
        assert a.shape == (shape[0], rank)
        assert b.shape == (rank, shape[1])
        assert torch.allclose(a.T @ a, torch.eye(rank).double(), atol=1e-10)
        loss = output_loss(weight - a @ b, h).sum()
        assert torch.allclose(loss, errors[rank], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_form_is_the_projector_form(shape):
    weight, h = layer(*shape)
    for rank in range(min(shape) + 1):
        b, a = whitened_svd(weight, h, rank, damp=1e-6)
        u, v = activation_svd(weight, h, ridge=1e-6).factors(rank)
        assert torch.allclose(b @ a, u @ v, atol=1e-8)
        assert torch.allclose(b.norm(dim=0) ** 2, torch.linalg.norm(a @ chol(h), dim=1) ** 2)


def chol(h):
    return torch.linalg.cholesky(ridged(h, 1e-6))


def test_loses_less_than_the_plain_singular_vectors():
    weight, h = layer(48, 64)
    for rank in (4, 16, 32):
        a, b = activation_svd(weight, h).factors(rank)
        u, s, v = truncated_svd(weight, rank)
        plain = output_loss(weight - u * s @ v.T, h).sum()
        assert output_loss(weight - a @ b, h).sum() < 0.8 * plain


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_centred_outputs_and_the_bias(shape):
    weight, _ = layer(*shape)
    x = torch.randn(500, shape[1]).double() * 0.3 + torch.randn(shape[1]).double() * 2
    h, mean = x.T @ x / 500, x.mean(dim=0)
    found = activation_svd(weight, h, mean=mean, ridge=0.0)
    plain = activation_svd(weight, h, ridge=0.0)
    assert plain.shift(3) is None
    y = x @ weight.double().T
    for rank in (0, 3, 8):
        a, b = found.factors(rank)
        ours = (y - (x @ b.T @ a.T + found.shift(rank))).square().sum(dim=1).mean()
        assert torch.allclose(ours, found.errors()[rank], rtol=1e-6)
        assert ours < plain.errors()[rank]
    assert torch.allclose(found.shift(min(shape)), torch.zeros(shape[0]).double(), atol=1e-9) or (
        shape[0] > shape[1]
    )


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_inputs_that_span_little(shape):
    """Beyond the rank of the inputs nothing is lost, and the basis is orthonormal all the same."""
    weight, _ = layer(*shape)
    x = torch.randn(5, shape[1]).double()
    h = x.T @ x
    found = activation_svd(weight, h, ridge=0.0)
    assert found.errors()[5] < 1e-12 * found.errors()[0]
    eye = torch.eye(min(shape)).double()
    assert torch.allclose(found.basis.T @ found.basis, eye, atol=1e-10)
    b, a = whitened_svd(weight, h, 5)
    assert output_loss(weight - b @ a, h).sum() < 1e-6 * found.errors()[0]
    nothing = activation_svd(torch.zeros(shape), torch.zeros(shape[1], shape[1]))
    assert (nothing.errors() == 0).all()
    assert (whitened_svd(torch.zeros(shape), torch.zeros(shape[1], shape[1]), 2)[0] == 0).all()


def test_inputs_never_seen_get_no_weight():
    weight, h = layer(8, 10)
    h[4], h[:, 4] = 0, 0
    b, a = whitened_svd(weight, h, 8)
    assert (a[:, 4] == 0).all()
    rest = torch.arange(10) != 4
    assert torch.allclose((b @ a)[:, rest], weight[:, rest].double(), atol=1e-6)


def test_ridge_makes_unseen_directions_count():
    weight, _ = layer(10, 20)
    x = torch.randn(4, 20).double()
    errors = {}
    for ridge in (0.0, 1e-4):
        a, b = activation_svd(weight, x.T @ x, ridge=ridge).factors(8)
        errors[ridge] = (weight - a @ b).norm()
    assert errors[1e-4] < errors[0.0]


def test_batches():
    pairs = [layer(6, 9, seed=s) for s in range(3)]
    weight, h = (torch.stack(parts) for parts in zip(*pairs))
    found = activation_svd(weight, h, mean=torch.ones(3, 9) * 0.01)
    b, a = whitened_svd(weight, h, 4)
    _, shared = whitened_svd(weight, h[0], 4)
    for i in range(3):
        alone = activation_svd(weight[i], h[i], mean=torch.ones(9) * 0.01)
        assert torch.allclose(found.errors()[i], alone.errors())
        assert torch.allclose(found.shift(2)[i], alone.shift(2))
        one = whitened_svd(weight[i], h[i], 4)
        assert torch.allclose((b @ a)[i], one[0] @ one[1])
    assert torch.allclose(shared[0].abs(), a[0].abs())
    assert activation_svd(weight, h[0]).errors().shape == (3, 7)


def decaying(rows, columns, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator).double()).Q
    v = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=generator).double()).Q
    s = torch.arange(1, min(rows, columns) + 1).double() ** -0.7
    if rank is not None:
        s[rank:] = 0
    return u * s @ v.T


@pytest.mark.parametrize("shape", [(150, 90), (90, 150)])
@pytest.mark.parametrize("rank", [1, 10, 40])
def test_randomised_is_within_one_percent_of_the_exact_error(shape, rank):
    matrix = decaying(*shape)
    exact, quick = truncated_svd(matrix, rank), randomized_svd(matrix, rank)
    lost = [(matrix - f.left * f.values @ f.right.T).norm() for f in (exact, quick)]
    assert lost[0] <= lost[1] <= 1.01 * lost[0]
    assert torch.allclose(quick.left.T @ quick.left, torch.eye(rank).double(), atol=1e-10)
    assert torch.allclose(quick.right.T @ quick.right, torch.eye(rank).double(), atol=1e-10)
    assert (quick.values.diff() <= 0).all()


def test_randomised_finds_a_low_rank_exactly_and_draws_from_its_generator():
    matrix = decaying(60, 50, rank=6)
    found = randomized_svd(matrix, 8, oversample=0, power=0)
    assert torch.allclose(found.left * found.values @ found.right.T, matrix, atol=1e-12)
    full = decaying(60, 50)
    draws = [
        randomized_svd(full, 5, power=0, generator=torch.Generator().manual_seed(seed)).values
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0], randomized_svd(full, 5, power=0).values)


def test_large_matrices_with_a_small_rank_are_sketched(monkeypatch):
    matrix = decaying(60, 50)
    monkeypatch.setattr(svd, "LARGE", 40)
    quick, exact = truncated_svd(matrix, 5), truncated_svd(matrix, 10)
    assert torch.equal(quick.left, randomized_svd(matrix, 5).left)
    assert torch.allclose(exact.values, torch.linalg.svdvals(matrix)[:10])
    b, a = whitened_svd(matrix, torch.eye(50), 5, generator=torch.Generator().manual_seed(3))
    assert b.shape == (60, 5)
    assert a.shape == (5, 50)


def test_the_same_bits_on_any_number_of_threads(same_bits):
    weight, h = layer(200, 260)
    same_bits(lambda: activation_svd(weight, h)[:3])
    same_bits(lambda: activation_svd(weight.T, torch.eye(200))[:3])
    same_bits(lambda: activation_svd(weight, h).factors(50))
    same_bits(lambda: whitened_svd(weight, h, 20))
    same_bits(lambda: randomized_svd(weight, 20))


def test_bad_input():
    weight, h = layer(6, 8)
    for bad in (
        lambda: activation_svd(weight[0], h),
        lambda: activation_svd(weight, h[:5]),
        lambda: activation_svd(weight, h, ridge=-1.0),
        lambda: activation_svd(weight, h, mean=torch.ones(6)),
        lambda: activation_svd(weight, h).factors(7),
        lambda: whitened_svd(weight, h, 7),
        lambda: whitened_svd(weight, h, -1),
        lambda: truncated_svd(weight[:0], 0),
        lambda: randomized_svd(weight, 2, power=-1),
        lambda: randomized_svd(weight, 2, oversample=-1),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (
        lambda: activation_svd(weight * torch.nan, h),
        lambda: activation_svd(weight, h * torch.inf),
        lambda: activation_svd(weight, h, mean=torch.full((8,), torch.nan)),
        lambda: whitened_svd(weight, -h, 2),
        lambda: truncated_svd(weight / 0, 2),
    ):
        with pytest.raises(BadWeights):
            bad()
