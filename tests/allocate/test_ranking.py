import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.allocate.ranking import (
    cubic_schedule,
    drop_lowest,
    grouped,
    linear_schedule,
    ungrouped,
)
from laconic.errors import UsageError

INF = float("inf")


def by_sorting(scores, target, sizes):
    """The longest beginning of all units, in order, that fits."""
    units = []
    for number, (name, score) in enumerate(scores.items()):
        for place, value in enumerate(score.flatten().tolist()):
            units.append((value, number, place, name))
    masks = {n: torch.zeros(s.numel(), dtype=torch.bool) for n, s in scores.items()}
    spent = 0.0
    for value, _, place, name in sorted(units):
        size = float(torch.as_tensor(sizes[name]).expand(scores[name].shape).flatten()[place])
        if value == INF or spent + size > target:
            break
        spent += size
        masks[name][place] = True
    return {n: m.reshape(scores[n].shape) for n, m in masks.items()}


@st.composite
def layers(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    few = draw(st.booleans())  # few values: many ties
    scores, sizes = {}, {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=2)))
        values = generator.integers(-2, 3, shape) if few else generator.normal(size=shape)
        score = torch.tensor(values).to(kind)
        if score.numel() and draw(st.booleans()):
            score.view(-1)[0] = draw(st.sampled_from([INF, -INF, -0.0, 1e-45]))
        scores[name] = score
        sizes[name] = draw(
            st.sampled_from([1.0, 2.5, torch.tensor(generator.integers(0, 4, shape)).double()])
        )
    total = sum(float(torch.as_tensor(sizes[n]).expand(s.shape).sum()) for n, s in scores.items())
    return scores, sizes, draw(st.floats(0, 1)) * total


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other) and set(one) == set(other)


class TestDropLowest:
    @given(layers())
    @settings(max_examples=300)
    def test_equals_sorting(self, problem):
        scores, sizes, target = problem
        assert same(drop_lowest(scores, target, sizes=sizes), by_sorting(scores, target, sizes))

    @given(layers())
    def test_sizes_as_a_function(self, problem):
        scores, sizes, target = problem

        def measure(masks):
            return sum(
                float(torch.as_tensor(sizes[n]).expand(m.shape)[m].sum()) for n, m in masks.items()
            )

        found = drop_lowest(scores, target, sizes=measure)
        assert same(found, by_sorting(scores, target, sizes))

    def test_rows_and_columns_that_overlap(self):
        """LLM Surgeon: r rows and c columns of a matrix remove r * C + c * R - r * c weights."""
        torch.manual_seed(0)
        rows, columns = 8, 12
        scores = {"rows": torch.rand(rows), "columns": torch.rand(columns)}

        def removed(masks):
            r, c = int(masks["rows"].sum()), int(masks["columns"].sum())
            return r * columns + c * rows - r * c

        masks = drop_lowest(scores, 40, sizes=removed)
        assert removed(masks) <= 40
        left = torch.cat([s[~m] for s, m in zip(scores.values(), masks.values())])
        gone = torch.cat([s[m] for s, m in zip(scores.values(), masks.values())])
        assert gone.max() < left.min()
        more = {n: m | (scores[n] == left.min()) for n, m in masks.items()}
        assert removed(more) > 40

    def test_everything_and_nothing(self):
        scores = {"a": torch.tensor([1.0, INF, 2.0]), "b": torch.zeros(0)}
        assert drop_lowest(scores, 0)["a"].sum() == 0
        assert drop_lowest(scores, 99)["a"].tolist() == [True, False, True]
        assert drop_lowest({}, 1) == {}

    def test_ties_go_by_layer_and_position(self):
        scores = {"b": torch.zeros(3), "a": torch.zeros(3)}
        assert drop_lowest(scores, 4)["b"].tolist() == [True] * 3
        assert drop_lowest(scores, 4)["a"].tolist() == [True, False, False]

    def test_many_elements(self):
        torch.manual_seed(0)
        scores = {str(i): torch.rand(500, 400).to(torch.bfloat16) for i in range(5)}
        masks = drop_lowest(scores, 123_457)
        assert sum(int(m.sum()) for m in masks.values()) == 123_457


class TestLimits:
    def test_a_layer_keeps_its_share(self):
        scores = {"low": torch.arange(10.0), "high": torch.arange(100.0, 110.0)}
        masks = drop_lowest(scores, 12, most={"low": 0.3})
        assert masks["low"].tolist() == [True] * 3 + [False] * 7
        assert masks["high"].tolist() == [True] * 9 + [False]

    def test_a_layer_loses_its_share(self):
        scores = {"low": torch.arange(10.0), "high": torch.arange(110.0, 100.0, -1)}
        masks = drop_lowest(scores, 5, least=0.2)
        assert masks["low"].sum() == 3 and masks["high"].nonzero().flatten().tolist() == [8, 9]

    @given(layers(), st.floats(0, 0.4), st.floats(0.4, 1))
    def test_shares_hold(self, problem, least, most):
        scores, sizes, target = problem
        try:
            masks = drop_lowest(scores, target, sizes=sizes, least=least, most=most)
        except UsageError:
            return
        for mask in masks.values():
            assert round(least * mask.numel()) <= int(mask.sum()) <= round(most * mask.numel())

    def test_what_cannot_be(self):
        scores = {"a": torch.tensor([1.0, INF])}
        with pytest.raises(UsageError, match="have size 2.0 of 1"):
            drop_lowest({"a": torch.zeros(2)}, 1, least=1.0)
        with pytest.raises(UsageError, match="2 units must be dropped, fewer may be"):
            drop_lowest(scores, 9, least=1.0)
        with pytest.raises(UsageError, match="a: 2 units must be"):
            drop_lowest({"a": torch.zeros(2)}, 9, least=1.0, most=0.5)
        with pytest.raises(UsageError, match="must be in 0..1, found 1.5"):
            drop_lowest(scores, 9, most=1.5)
        with pytest.raises(UsageError, match="no layer 'b'; known: a"):
            drop_lowest(scores, 9, most={"b": 0.5})


class TestGroups:
    def test_members_live_and_die_together(self):
        groups = {"up": torch.tensor([[0, 0], [1, 1]]), "down": torch.tensor([[0, 1], [0, -1]])}
        scores = {"up": torch.tensor([[1.0, 2], [3, 4]]), "down": torch.tensor([[5.0, 6], [7, 8]])}
        score, size = grouped(scores, groups)
        assert score.tolist() == [15, 13] and size.tolist() == [4, 3]
        dropped = drop_lowest({"": score}, 3, sizes={"": size})[""]
        masks = ungrouped(dropped, groups)
        assert masks["up"].tolist() == [[False, False], [True, True]]
        assert masks["down"].tolist() == [[False, True], [False, False]]

    def test_reductions_and_numbers_that_no_unit_has(self):
        scores, groups = {"a": torch.tensor([1.0, 3.0, 2.0])}, {"a": torch.tensor([0, 0, 2])}
        assert grouped(scores, groups, reduce="mean")[0].tolist() == [2, INF, 2]
        assert grouped(scores, groups, reduce="max")[0].tolist() == [3, INF, 2]
        assert grouped({"a": torch.zeros(0)}, {"a": torch.zeros(0)})[0].tolist() == []

    def test_bad_input(self):
        with pytest.raises(UsageError, match="reduce must be"):
            grouped({"a": torch.zeros(1)}, {"a": torch.zeros(1)}, reduce="median")
        with pytest.raises(UsageError, match="shapes of the scores"):
            grouped({"a": torch.zeros(2)}, {"a": torch.zeros(1)})


class TestSchedules:
    @given(st.floats(0, 1), st.integers(1, 50), st.floats(0, 1))
    def test_end_where_they_should(self, final, shots, start):
        for schedule in (linear_schedule, cubic_schedule):
            values = schedule(final, shots, start=start)
            assert len(values) == shots and values[-1] == final
            ordered = sorted(values, reverse=start > final)
            assert values == pytest.approx(ordered, abs=1e-12)

    def test_cubic_is_faster_at_first(self):
        cubic, linear = cubic_schedule(0.9, 10), linear_schedule(0.9, 10)
        assert all(c > s for c, s in zip(cubic[:-1], linear[:-1]))

    def test_no_shots(self):
        with pytest.raises(UsageError, match="1 or more"):
            linear_schedule(0.5, 0)


class TestBadScores:
    def test_scores(self):
        with pytest.raises(UsageError, match="a: a score is not a number"):
            drop_lowest({"a": torch.tensor([1.0, float("nan")])}, 1)
        with pytest.raises(UsageError, match="floating-point, found torch.int64"):
            drop_lowest({"a": torch.tensor([1])}, 1)

    @pytest.mark.parametrize("sizes", [{}, {"a": torch.ones(3)}])
    def test_sizes(self, sizes):
        with pytest.raises(UsageError, match="a: sizes must be one number or have the shape"):
            drop_lowest({"a": torch.ones(2)}, 1, sizes=sizes)

    @pytest.mark.parametrize("size", [-1.0, float("nan"), torch.tensor([1.0, -2.0])])
    def test_negative_sizes(self, size):
        with pytest.raises(UsageError, match="negative or not a number"):
            drop_lowest({"a": torch.ones(2)}, 1, sizes={"a": size})
