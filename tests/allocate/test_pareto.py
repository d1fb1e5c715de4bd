import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.allocate.pareto import at_size, front, hypervolume, knee, lower_hull, lower_hulls
from laconic.errors import UsageError


@st.composite
def clouds(draw, dimensions=(1, 2, 3, 4)):
    size, width = draw(st.integers(0, 12)), draw(st.sampled_from(dimensions))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return generator.integers(0, 4, (size, width)).astype(float)
    return generator.random((size, width))


def beats(one, other):
    return (one <= other).all() and (one < other).any()


class TestFront:
    @given(clouds())
    @settings(max_examples=300)
    def test_is_what_no_other_beats(self, points):
        found = front(points)
        expected = []
        for i, point in enumerate(points):
            equal_before = any((points[j] == point).all() for j in range(i))
            if not equal_before and not any(beats(other, point) for other in points):
                expected.append(i)
        assert sorted(found.tolist()) == expected
        assert (np.diff(points[found, 0]) >= 0).all()

    def test_infinity(self):
        points = np.array([[1.0, np.inf], [2.0, np.inf], [3.0, 5.0]])
        assert front(points).tolist() == [0, 2]

    def test_many_points(self):
        points = np.random.default_rng(0).random((2000, 3))
        found = front(points)
        assert 1 < len(found) < 400
        for i in found[:20]:
            assert not (points < points[i]).all(axis=1).any()

    @pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 0)), [[np.nan, 1.0]]])
    def test_bad_input(self, bad):
        with pytest.raises(UsageError, match="rows of a table|point 0 is not a number"):
            front(np.asarray(bad))


class TestKnee:
    def test_is_farthest_from_the_line_through_the_ends(self):
        x = np.linspace(0.1, 4, 50)
        points = np.stack([x, np.exp(-2 * x)], axis=1)
        scaled = (points - points.min(axis=0)) / np.ptp(points, axis=0)
        distance = 1 - scaled.sum(axis=1)
        assert knee(points) == distance.argmax()

    def test_units_do_not_matter(self):
        points = np.array([[0, 10.0], [1, 2], [5, 1], [10, 0]])
        assert knee(points) == knee(points * [1e9, 1e-9]) == 1

    def test_one_point_and_equal_points(self):
        assert knee(np.array([[3.0, 4.0]])) == 0
        assert knee(np.array([[3.0, 4.0], [3.0, 4.0]])) == 0

    @pytest.mark.parametrize("bad", [np.zeros((0, 2)), np.array([[np.inf, 1.0]])])
    def test_bad_input(self, bad):
        with pytest.raises(UsageError, match="one finite point"):
            knee(bad)


class TestHypervolume:
    @given(clouds(dimensions=(1, 2, 3, 4)))
    @settings(max_examples=150)
    def test_counts_the_cells_of_whole_points(self, points):
        points, corner = np.floor(points * 3), np.full(points.shape[1], 4)
        cells = np.stack(np.meshgrid(*[np.arange(4)] * len(corner)), axis=-1).reshape(
            -1, len(corner)
        )
        inside = [(points <= cell).all(axis=1).any() for cell in cells]
        assert hypervolume(points, corner) == pytest.approx(sum(inside))

    @given(clouds(dimensions=(2, 3)), st.integers(0, 2**32))
    def test_another_point_never_makes_it_smaller(self, points, seed):
        corner = np.ones(points.shape[1])
        another = np.random.default_rng(seed).random((1, points.shape[1]))
        more = hypervolume(np.concatenate([points, another]), corner)
        assert more >= hypervolume(points, corner) - 1e-12

    def test_points_beyond_the_reference_count_nothing(self):
        assert hypervolume(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([2.0, 2.0])) == 0

    def test_bad_input(self):
        with pytest.raises(UsageError, match="must have 2 numbers"):
            hypervolume(np.zeros((1, 2)), np.zeros(3))


class TestHull:
    @given(clouds(dimensions=(2,)))
    @settings(max_examples=200)
    def test_nothing_is_below_it_and_it_is_convex(self, points):
        corners = lower_hull(points[:, 0], points[:, 1])
        if not len(points):
            assert corners.tolist() == []
            return
        x, y = points[corners].T
        assert (np.diff(x) > 0).all()
        slopes = np.diff(y) / np.diff(x)
        assert (np.diff(slopes) > -1e-9).all()
        assert (np.interp(points[:, 0], x, y) <= points[:, 1] + 1e-9).all()
        assert x[0] == points[:, 0].min() and x[-1] == points[:, 0].max()

    @given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 12))
    def test_rows_together_are_rows_alone(self, seed, rows, columns):
        values = np.random.default_rng(seed).normal(size=(rows, columns)).cumsum(axis=1)
        hulls = lower_hulls(values)
        places = np.arange(columns)
        for row, hull in zip(values, hulls):
            corners = lower_hull(places, row)
            assert hull == pytest.approx(np.interp(places, corners, row[corners]))
            assert (hull <= row).all() and (hull[corners] == row[corners]).all()
        assert (np.diff(hulls, 2, axis=1) > -1e-9).all()

    def test_bad_input(self):
        with pytest.raises(UsageError, match="finite points"):
            lower_hull(np.array([1.0]), np.array([np.inf]))
        with pytest.raises(UsageError, match="finite values"):
            lower_hulls(np.array([[np.inf]]))


class TestAtSize:
    def test_is_linear_in_the_logarithm(self):
        sizes = np.array([4.0, 2.0, 3.0])
        assert at_size(sizes, np.exp([1.0, 5.0, 2.0]), 2.25) == pytest.approx(np.exp(4.25))
        assert at_size(sizes, np.exp([1.0, 5.0, 2.0]), 4.0) == pytest.approx(np.exp(1.0))

    @pytest.mark.parametrize("size", [1.9, 4.1, np.nan])
    def test_is_not_continued(self, size):
        with pytest.raises(UsageError, match="measured from 2 to 4"):
            at_size(np.array([2.0, 4.0]), np.array([9.0, 5.0]), size)

    def test_bad_curves(self):
        with pytest.raises(UsageError, match="measured from nothing"):
            at_size(np.zeros(0), np.zeros(0), 1.0)
        with pytest.raises(UsageError, match="different sizes and values above 0"):
            at_size(np.array([1.0, 1.0]), np.array([2.0, 3.0]), 1.0)
        with pytest.raises(UsageError, match="different sizes and values above 0"):
            at_size(np.array([1.0, 2.0]), np.array([2.0, 0.0]), 1.5)
