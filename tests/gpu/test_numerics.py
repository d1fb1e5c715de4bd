"""Mathematics on a CUDA device. What decides by comparing numbers (codes, masks, clusters) may decide
otherwise where two are equal but for rounding: there the share of equal decisions and the loss count.
"""

import pytest
import torch

from laconic.numerics import cholesky, cur, least_squares, nystrom, procrustes, sinkhorn, svd
from laconic.numerics.absorb import absorb_error
from laconic.numerics.golden import golden_section
from laconic.numerics.hadamard import full_hadamard_transform, hadamard_transform
from laconic.numerics.kmeans import kmeans, nearest
from laconic.numerics.kmeans_1d import kmeans_1d_exact
from laconic.numerics.kmeans_init import (
    density_init,
    mahalanobis_init,
    plus_plus_init,
    rank_init,
)
from laconic.numerics.obs import activation_order, block_sweep, grid_sweep, sparse_sweep
from laconic.numerics.obs_coded import coded_sweep, counted_lengths, expected_lengths
from laconic.numerics.obs_exact import exact_prune, exact_quantize, kept_after
from laconic.numerics.parallel import parallel_map
from tests.gpu.near import alike, assert_near, moved
from tests.numerics.layers import layer, row_grid

WEIGHT, H = layer(48, 160)
SMALL, SMALL_H = layer(12, 24)
UPPER = cholesky.inverse_upper(H).factor
DEAD = H.clone()
DEAD[3] = DEAD[:, 3] = 0
BENT = H - 0.01 * torch.eye(160, dtype=torch.float64)  # needs more damping than it is given
BATCH = torch.stack([H, DEAD])
KEEP = torch.rand(48, 160, generator=torch.Generator().manual_seed(2)) < 0.6
FEW = KEEP[:12, :24]
TALL = torch.linalg.qr(WEIGHT.double().T).Q[:, :12]
COST = torch.rand(12, 9, generator=torch.Generator().manual_seed(1))
SIMILAR = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
KEPT = torch.tensor([5, 1, 17, 20])
STARTS = torch.randn(3, 90, 2, generator=torch.Generator().manual_seed(1))

#: Smooth functions: values near to 1e-8 in float64, 1e-5 in float32.
SMOOTH = {
    "damped cholesky": (cholesky.damped_cholesky, BATCH),
    "cholesky fall-back": (lambda h: cholesky.damped_cholesky(h, 0.0), BENT),
    "inverse upper": (cholesky.inverse_upper, BATCH),
    "inverse": (cholesky.inverse, BATCH),
    "solve": (cholesky.solve, H, WEIGHT.T),
    "ridge of": (lambda h: cholesky.ridge_of(h, 0.1), BATCH),
    "hadamard": (hadamard_transform, torch.randn(5, 96, generator=torch.Generator().manual_seed(1))),
    "full hadamard": (full_hadamard_transform, WEIGHT),
    "ridge leverage": (nystrom.ridge_leverage, BATCH),
    "nystrom fold": (nystrom.nystrom_fold, SMALL_H, KEPT),
    "nystrom": (nystrom.nystrom, SMALL_H, KEPT),
    "ridge regression": (least_squares.ridge_regression, H, (H @ WEIGHT.T.double())),
    "affine regression": (
        least_squares.affine_regression, H, H @ WEIGHT.T.double(),
        0.01 * torch.ones(160), 0.01 * torch.ones(48),
    ),
    "procrustes": (procrustes.orthogonal_procrustes, WEIGHT[:, :12], WEIGHT[:, 12:24]),
    "nearest orthogonal": (procrustes.nearest_orthogonal, SIMILAR),
    "permutation": (procrustes.best_permutation, SIMILAR),
    "sinkhorn": (lambda c: sinkhorn.sinkhorn(c, epsilon=0.1)[0], COST),
    "absorb": (absorb_error, SMALL, SMALL_H, FEW),
    "activation order": (activation_order, H),
    "deim": (cur.deim, TALL),
    "qdeim": (cur.qdeim, TALL),
    "cur link": (lambda w, r, c: cur.cur_link(w, r, c), WEIGHT, KEPT, KEPT + 3),
    "leverage scores": (lambda w: cur.leverage_scores(w, 8), WEIGHT),
    "counted lengths": (counted_lengths, torch.arange(256.0)),
    "rank init": (rank_init, STARTS[:, :, :1], 7),
    "density init": (density_init, STARTS[:, :, :1], 7),
    "mahalanobis init": (mahalanobis_init, STARTS, 7),
    "exact line": (kmeans_1d_exact, STARTS[:, :, 0], 5),
    "kept after": (lambda o: kept_after(o, 24, 9), exact_prune(SMALL, cholesky.inverse(SMALL_H)).order),
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth(device, name):
    function, *given = SMOOTH[name]
    assert_near(function(*moved(given, device)), function(*given), device, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean", [None, H[0] * 0.1])
def test_activation_svd(device, mean):
    """Vectors have no sign; products of factors do."""

    def run(place):
        weight, h, mu = moved((WEIGHT, H, mean), place)
        found = svd.activation_svd(weight, h, mean=mu)
        a, b = found.factors(16)
        return a @ b, found.energy, found.errors(), found.shift(16)

    assert_near(run(device), run("cpu"), device, rtol=1e-6, atol=1e-8)


def test_other_svds(device):
    def run(place):
        weight, h = moved((WEIGHT, H), place)
        b, a = svd.whitened_svd(weight, h, 12)
        products = [b @ a]
        for found in (svd.truncated_svd(weight, 12), svd.randomized_svd(weight, 12)):
            products += [found.left * found.values @ found.right.mT, found.values]
        return products

    assert_near(run(device), run("cpu"), device, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("moment", [None, H, H.diagonal()], ids=["none", "full", "diagonal"])
def test_cur(device, moment):
    def lost(place):
        weight, h = moved((WEIGHT, moment), place)
        found = cur.cur(weight, 16, moment=h)
        assert found.link.device.type == torch.device(place).type
        return float(
            (weight - weight[:, found.columns].double() @ found.link @ weight[found.rows].double())
            .norm()
        )  # fmt: skip

    assert lost(device) == pytest.approx(lost("cpu"), rel=0.02)


def sweeps(place, keep=None):
    """Every sweep with error feedback, over a float32 weight."""
    weight, upper, kept = moved((WEIGHT, UPPER, keep), place)
    grid, asymmetric = row_grid(weight, 3), row_grid(weight, 4, 32)
    step = torch.full((48,), 0.4, device=place)
    found = {
        "grid": grid_sweep(weight, upper, grid, keep=kept),
        "groups": grid_sweep(weight, upper, asymmetric, keep=kept),
        "coded": coded_sweep(weight, upper, step, expected_lengths(1.5).to(place), keep=kept),
    }
    if keep is None:
        found["share"] = sparse_sweep(weight, upper, sparsity=0.5)
        found["2:4"] = sparse_sweep(weight, upper, pattern=(2, 4))
        found["2:4 grid"] = sparse_sweep(weight, upper, pattern=(2, 4), grid=grid)
        found["callback"] = block_sweep(weight, upper, lambda w, _: w.round(), dim=4)
    return found


@pytest.mark.parametrize("keep", [None, KEEP], ids=["whole", "masked"])
def test_sweeps(device, keep):
    ours, theirs = sweeps(device, keep), sweeps("cpu", keep)
    for name, found in ours.items():
        expected = theirs[name]
        assert found.values.device.type == torch.device(device).type, name
        assert float(found.loss.sum()) == pytest.approx(float(expected.loss.sum()), rel=0.02), name
        same = (found.values.cpu() - expected.values).abs() < 1e-3
        assert same.double().mean() > 0.9, name
        if found.keep is not None:
            assert alike(found.keep, expected.keep) > 0.97, name


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_exact_pruning(device, pattern):
    def run(place):
        weight, inverse = moved((SMALL, cholesky.inverse(SMALL_H)), place)
        steps = None if pattern else 12
        return exact_prune(weight, inverse, steps=steps, pattern=pattern)

    ours, theirs = run(device), run("cpu")
    assert alike(ours.order, theirs.order) > 0.95
    assert_near(ours.loss.sum(), theirs.loss.sum(), device, rtol=0.01)


@pytest.mark.parametrize("keep", [None, FEW], ids=["whole", "masked"])
def test_exact_quantization(device, keep):
    def run(place):
        weight, inverse, kept = moved((SMALL, cholesky.inverse(SMALL_H), keep), place)
        return exact_quantize(weight, inverse, row_grid(weight, 3), keep=kept)

    ours, theirs = run(device), run("cpu")
    assert ours.codes.device.type == torch.device(device).type
    assert alike(ours.codes, theirs.codes) > 0.95
    assert_near(ours.loss.sum(), theirs.loss.sum(), device, rtol=0.02)


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("weighted", ["", "points", "coordinates"])
@pytest.mark.parametrize("start", ["default", "drawn"])
def test_kmeans(device, dim, weighted, start):
    draw = torch.Generator().manual_seed(4)
    points = torch.randn(3, 300, dim, generator=draw)
    weights = torch.rand(3, 300, dim, generator=draw) + 0.1
    given = {"": None, "points": weights[:, :, 0], "coordinates": weights}[weighted]

    def run(place):
        generator = torch.Generator().manual_seed(0) if start == "drawn" else None
        return kmeans(
            points.to(place), 8, weights=moved(given, place), generator=generator
        )  # fmt: skip

    ours, theirs = run(device), run("cpu")
    assert ours.centroids.device.type == ours.assignment.device.type == torch.device(device).type
    assert_near(ours.distortion, theirs.distortion, device, rtol=0.02)
    again = run(device)
    assert torch.equal(ours.centroids, again.centroids)  # no sum depends on chance
    found, _ = nearest(points.to(device), theirs.centroids.to(device), weights=moved(given, device))
    assert alike(found, theirs.assignment) > 0.995


def test_draws_are_those_of_the_cpu(device):
    points = STARTS.double()
    drawn = [
        plus_plus_init(points.to(p), 5, torch.Generator().manual_seed(3)) for p in ("cpu", device)
    ]
    assert torch.equal(drawn[0], drawn[1].cpu())


def test_golden_section(device):
    goal = torch.linspace(0.1, 0.9, 40).reshape(5, 8)

    def run(place):
        target = goal.to(place)
        return golden_section(
            lambda t: (t - target).square(), 0.0, 1.0, (5, 8), device=target.device
        )

    assert_near(run(device), run("cpu"), device, atol=1e-3)


def test_conjugate_gradient(device):
    def run(place):
        h, right = moved((H + torch.eye(160), H @ WEIGHT.T.double()), place)
        return least_squares.conjugate_gradient(lambda x: h @ x, right, iterations=60)

    assert_near(run(device), run("cpu"), device, rtol=1e-5, atol=1e-6)


def test_threads_may_factorize_at_once(device):
    """Torch loads its CUDA linear algebra at the first call, which must not be made twice at once."""
    torch.set_num_threads(4)
    moments = [(k + 1) * H.to(device) for k in range(8)]
    found = parallel_map(cholesky.inverse, moments)
    for k, inverse in enumerate(found):
        assert_near(inverse, cholesky.inverse((k + 1) * H), device, rtol=1e-6)
