import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import BadWeights, UsageError
from laconic.numerics import _nearest
from laconic.numerics import kmeans as module
from laconic.numerics.kmeans import kmeans, nearest
from laconic.numerics.kmeans_1d import kmeans_1d_exact
from laconic.numerics.kmeans_init import density_init, mahalanobis_init, plus_plus_init, rank_init


def problem(batch=3, total=400, dim=2, kind="coordinate", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, total, dim, generator=generator, dtype=dtype)
    shape = {"none": None, "point": (batch, total), "coordinate": (batch, total, dim)}[kind]
    weights = None if shape is None else torch.rand(shape, generator=generator, dtype=dtype)
    return points, weights


def loss(points, centroids, assignment, weights=None):
    chosen = centroids.gather(1, assignment.unsqueeze(-1).expand(-1, -1, points.shape[2]))
    squares = (points.double() - chosen.double()) ** 2
    if weights is not None:
        squares = squares * (weights if weights.ndim == 3 else weights.unsqueeze(-1))
    return squares.sum(dim=(1, 2))


@pytest.mark.parametrize("kind", ["none", "point", "coordinate"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_distortion_never_rises_and_is_what_it_says(kind, dim):
    points, weights = problem(dim=dim, kind=kind)
    before = None
    for iterations in range(12):
        found = kmeans(points, 13, weights=weights, iterations=iterations)
        again = loss(points, found.centroids, found.assignment, weights)
        assert torch.allclose(found.distortion, again, rtol=1e-6)
        assert before is None or (found.distortion <= before).all()
        before = found.distortion


@pytest.mark.parametrize("kind", ["none", "point", "coordinate"])
def test_stops_at_a_fixed_point(kind):
    """Each centroid is the weighted mean of its points, and each point is with its nearest."""
    points, weights = problem(kind=kind, dtype=torch.float64)
    found = kmeans(points, 7, weights=weights, iterations=1000)
    each = torch.ones_like(points) if weights is None else weights
    each = (each if each.ndim == 3 else each.unsqueeze(-1)).expand_as(points)
    own = torch.nn.functional.one_hot(found.assignment, 7).double().mT  # (B, K, N)
    assert torch.allclose(found.centroids, own @ (each * points) / (own @ each), atol=1e-12)
    apart = points.unsqueeze(2) - found.centroids.unsqueeze(1)
    error = (each.unsqueeze(2) * apart**2).sum(dim=-1)
    assert torch.equal(found.assignment, error.argmin(dim=2))


def test_finds_separated_clouds():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centres.repeat(50, 1) + 0.1 * torch.randn(200, 2)).unsqueeze(0)
    found = kmeans(points, 4, generator=torch.Generator().manual_seed(1))
    order = (found.centroids[0] @ torch.tensor([1.0, 2.0])).argsort()
    assert torch.allclose(found.centroids[0][order], centres, atol=0.1)


def test_the_batch_does_not_matter():
    points, weights = problem(batch=5, total=300, dim=3)
    together = kmeans(points, 9, weights=weights)
    for b in range(5):
        alone = kmeans(points[b : b + 1], 9, weights=weights[b : b + 1])
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, together))


@pytest.mark.parametrize("pairs", [1, 97, 1 << 12])
def test_the_size_of_the_parts_does_not_matter(monkeypatch, pairs):
    points, weights = problem(batch=4, total=50)
    whole = kmeans(points, 6, weights=weights)
    monkeypatch.setattr(_nearest, "PAIRS_AT_ONCE", pairs)
    assert all(torch.equal(a, b) for a, b in zip(whole, kmeans(points, 6, weights=weights)))


def test_parts_cover_the_batch_within_the_bound(monkeypatch):
    monkeypatch.setattr(_nearest, "PAIRS_AT_ONCE", 1000)
    for batch, total, count in itertools.product((1, 7), (3, 120), (1, 16, 3000)):
        seen = torch.zeros(batch, total)
        for part in _nearest._parts(batch, total, count):
            seen[part] += 1
            assert seen[part].numel() * count <= max(1000, count)
        assert (seen == 1).all()


@pytest.mark.parametrize("kind", ["none", "point", "coordinate"])
def test_other_devices_round_alike(monkeypatch, kind):
    """Kernels for other devices, run here, give the bits of those for this one."""
    points, weights = problem(kind=kind, dim=4)
    once = kmeans(points, 11, weights=weights)
    monkeypatch.setattr(_nearest, "_nearest_numba", _nearest._nearest_torch)

    def segments(values, key, size):
        order, lengths = torch.argsort(key, stable=True), torch.bincount(key, minlength=size)
        return torch.segment_reduce(values[order], "sum", lengths=lengths, unsafe=True)

    monkeypatch.setattr(module, "cluster_sums", segments)
    assert all(torch.equal(a, b) for a, b in zip(once, kmeans(points, 11, weights=weights)))


def test_the_same_bits_on_any_number_of_threads(same_bits, monkeypatch):
    monkeypatch.setattr(_nearest, "PAIRS_AT_ONCE", 1 << 12)
    points, weights = problem(total=1000, dim=3)
    same_bits(lambda: kmeans(points, 16, weights=weights, iterations=5))
    seed = torch.Generator()
    same_bits(lambda: kmeans(points, 16, iterations=3, generator=seed.manual_seed(5)))


def test_empty_clusters_start_anew_on_the_farthest_points():
    points = torch.tensor([[[0.0], [1.0], [2.0], [50.0], [90.0]]])
    init = torch.tensor([[[1.0], [1000.0], [2000.0]]])
    found = kmeans(points, 3, init=init, iterations=1)
    assert found.centroids[0, 1:].flatten().tolist() == [90.0, 50.0]
    found = kmeans(points, 3, init=init)
    assert sorted(found.centroids.flatten().tolist()) == [1.0, 50.0, 90.0]


def test_points_without_weight_move_nothing():
    points, weights = problem(kind="point", dim=3)
    weights[:, 200:] = 0
    padded = kmeans(points, 5, weights=weights, init=points[:, :5])
    short = kmeans(points[:, :200], 5, weights=weights[:, :200], init=points[:, :5])
    assert torch.equal(padded.centroids, short.centroids)
    assert torch.equal(padded.assignment[:, :200], short.assignment)


@pytest.mark.parametrize("shape", [(2, 30), (2, 30, 4)])
def test_no_weight_at_all(shape):
    points = torch.randn(2, 30, 4)
    found = kmeans(points, 3, weights=torch.zeros(shape))
    assert (found.distortion == 0).all()
    assert torch.isfinite(found.centroids).all()


def test_a_coordinate_without_weight_keeps_its_place():
    points = torch.randn(1, 50, 2)
    weights = torch.tensor([1.0, 0.0]).expand(1, 50, 2)
    init = torch.randn(1, 4, 2)
    assert torch.equal(
        kmeans(points, 4, weights=weights, init=init).centroids[..., 1], init[..., 1]
    )


@pytest.mark.parametrize("count", [1, 4, 6])
def test_fewer_distinct_points_than_centroids(count):
    points = torch.tensor([3.0, 3.0, 7.0]).repeat(2).reshape(1, 6, 1).repeat(1, 1, 2)
    for generator in (None, torch.Generator().manual_seed(0)):
        found = kmeans(points, count, generator=generator)
        assert torch.isfinite(found.centroids).all()
        assert count == 1 or found.distortion.item() == 0


def test_as_many_centroids_as_points():
    points, _ = problem(total=12, dim=2)
    assert (kmeans(points, 12, iterations=50).distortion == 0).all()


def test_far_from_the_origin_nothing_cancels():
    points = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 4, 1) + 2.0**20
    points = points.expand(1, 4, 2)
    assert kmeans(points, 4).distortion.item() == 0


def test_arguments_are_left_alone():
    points, weights = problem()
    init = points[:, :5].clone()
    copies = [t.clone() for t in (points, weights, init)]
    kmeans(points, 5, weights=weights, init=init)
    assert all(torch.equal(a, b) for a, b in zip(copies, (points, weights, init)))
    kmeans(points.requires_grad_(), 5, weights=weights)


def test_dtypes():
    points, _ = problem()
    assert kmeans(points.bfloat16(), 4).centroids.dtype == torch.float32
    assert kmeans(points.double(), 4).centroids.dtype == torch.float64
    assert kmeans(points[:0], 4).assignment.shape == (0, 400)


def test_nearest_takes_the_first_of_equals():
    points = torch.tensor([[[1.0], [5.0]]])
    index, distance = nearest(points, torch.tensor([[[0.0], [2.0], [0.0]]]))
    assert index.tolist() == [[0, 1]]
    assert distance.tolist() == [[1.0, 9.0]]


@pytest.mark.parametrize("count", [1, _nearest.LANES - 1, _nearest.LANES, 3 * _nearest.LANES + 5])
@pytest.mark.parametrize("kind", ["none", "points", "coordinates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_is_what_all_distances_say(count, kind, dtype):
    generator = torch.Generator().manual_seed(count)
    points = torch.randint(-9, 9, (2, count, 3), generator=generator).to(dtype)  # equals occur
    centroids = torch.randint(-9, 9, (2, 20, 3), generator=generator).to(dtype)
    weights = torch.rand(2, count, 3 if kind == "coordinates" else 1, generator=generator)
    weights = None if kind == "none" else weights.squeeze(-1)
    index, distance = nearest(points, centroids, weights=weights)
    square = (points[:, :, None] - centroids[:, None]).square()
    if kind == "coordinates":
        square = square * weights[:, :, None].to(dtype)
    every = square.sum(-1)
    least = every.amin(-1)
    assert torch.allclose(every.gather(2, index[..., None])[..., 0], least)
    if kind != "coordinates":  # whole numbers: the first of equals, exactly
        assert torch.equal(index, (every == least[..., None]).int().argmax(-1))
    assert torch.allclose(distance, least * weights.to(dtype) if kind == "points" else least)


def test_bad_input():
    points, weights = problem()
    nan = points.clone()
    nan[0, 0] = torch.nan
    for bad in (
        lambda: kmeans(points[0], 3),
        lambda: kmeans(points[:, :0], 0),
        lambda: kmeans(points, 0),
        lambda: kmeans(points, 401),
        lambda: kmeans(points, 3, weights=weights[:, :-1]),
        lambda: kmeans(points, 3, weights=-weights),
        lambda: kmeans(points, 3, init=points[:, :4]),
        lambda: nearest(points, points[:2]),
        lambda: rank_init(points, 0),
        lambda: kmeans_1d_exact(points, 3),
        lambda: kmeans_1d_exact(points[..., 0], 0),
        lambda: kmeans_1d_exact(points[..., 0], 3, weights=-weights[..., 0]),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (
        lambda: kmeans(nan, 3),
        lambda: kmeans(points, 3, weights=nan),
        lambda: kmeans(points, 3, init=nan[:, :3]),
        lambda: nearest(points, nan[:, :3]),
        lambda: kmeans_1d_exact(nan[..., 0], 3),
    ):
        with pytest.raises(BadWeights):
            bad()


def test_plus_plus_draws_by_error():
    """One far point among many near ones is the second choice in nearly all draws."""
    points = torch.cat([0.01 * torch.randn(1, 99, 2), torch.full((1, 1, 2), 100.0)], dim=1)
    for seed in range(20):
        chosen = plus_plus_init(points, 2, torch.Generator().manual_seed(seed))
        assert (chosen == 100).any()
    weights = torch.ones(1, 100, 2)
    weights[:, 99] = 0
    chosen = plus_plus_init(points, 30, torch.Generator().manual_seed(0), weights=weights)
    assert not (chosen == 100).any()
    assert len(chosen[0].unique(dim=0)) == 30


def test_plus_plus_is_better_than_any_points():
    points = torch.randn(4, 500, 2).repeat(1, 1, 1)
    drawn = plus_plus_init(points, 20, torch.Generator().manual_seed(0))
    assert (nearest(points, drawn)[1].sum() < nearest(points, points[:, :20])[1].sum()).all()


def test_mahalanobis_ranks_do_not_depend_on_the_axes():
    """Any invertible map of the points maps the centroids alike."""
    points, _ = problem(dim=3, dtype=torch.float64)
    shear = torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.1, 3.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    plain, moved = mahalanobis_init(points, 10), mahalanobis_init(points @ shear + 5, 10)
    assert torch.allclose(plain @ shear + 5, moved)


def test_mahalanobis_of_a_flat_cloud():
    line = torch.randn(1, 40, 1).expand(1, 40, 3)
    assert torch.isfinite(mahalanobis_init(line, 5)).all()
    assert (mahalanobis_init(torch.ones(1, 40, 3), 5) == 1).all()


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=9),
    st.integers(1, 9),
    st.lists(st.integers(0, 5), min_size=9, max_size=9),
)
def test_exact_is_the_best_of_all_partitions(values, count, weights):
    count = min(count, len(values))
    points = torch.tensor([values], dtype=torch.float64)
    mass = torch.tensor([weights[: len(values)]], dtype=torch.float64)
    centroids, assignment = kmeans_1d_exact(points, count, weights=mass)
    found = (mass * (points - centroids.gather(1, assignment)) ** 2).sum().item()
    x, order = points[0].sort()
    w = mass[0][order]
    best = torch.inf
    for ends in itertools.combinations(range(1, len(values)), count - 1):
        cost = 0.0
        for a, b in itertools.pairwise((0, *ends, len(values))):
            if w[a:b].sum() > 0:
                mean = (w[a:b] * x[a:b]).sum() / w[a:b].sum()
                cost += (w[a:b] * (x[a:b] - mean) ** 2).sum().item()
        best = min(best, cost)
    assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", ["none", "point", "coordinate"])
def test_on_a_line_the_optimum_is_found(kind):
    points, weights = problem(dim=1, kind=kind)
    flat = None if weights is None else weights.reshape(3, 400)
    centroids, assignment = kmeans_1d_exact(points[..., 0], 9, weights=flat)
    best = loss(points, centroids.unsqueeze(-1), assignment, weights)
    assert torch.allclose(kmeans(points, 9, weights=weights).distortion, best, rtol=1e-5)


@pytest.mark.parametrize("count", [4, 8, 16])
def test_without_it_a_line_is_near_the_optimum(monkeypatch, count):
    points, weights = problem(batch=4, total=2048, dim=1, kind="point")
    best = kmeans(points, count, weights=weights).distortion
    monkeypatch.setattr(module, "EXACT_STEPS", 0)
    ours = kmeans(points, count, weights=weights, iterations=100).distortion
    assert (ours >= best * (1 - 1e-6)).all()
    assert best.sum() < ours.sum() < 1.05 * best.sum()


def test_density_is_better_than_ranks_in_the_tails():
    points, _ = problem(total=2000, dim=1)
    ranks, density = (kmeans(points, 32, init=f(points, 32)) for f in (rank_init, density_init))
    assert (density.distortion < 0.8 * ranks.distortion).all()
    assert (density_init(torch.ones(1, 9, 1), 4) == 1).all()


def test_exact_has_the_same_bits_on_any_number_of_threads(same_bits):
    points, _ = problem(dim=1)
    same_bits(lambda: kmeans_1d_exact(points[..., 0], 9))
    assert kmeans_1d_exact(points[:0, :, 0], 9)[0].shape == (0, 9)
