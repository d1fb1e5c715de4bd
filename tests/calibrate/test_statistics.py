import pytest
import torch

from laconic.calibrate.histogram import Histogram
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import (
    AbsMax,
    Collected,
    CrossMoment,
    GradientMoment,
    InputNorm,
    KroneckerFactors,
    Observation,
    OutputMoment,
    SecondMoment,
)
from laconic.errors import DataError, UsageError
from laconic.models.layout import Layer
from laconic.tensors import (
    Bitmask,
    ChannelScale,
    CodebookQuantizer,
    Dense,
    IntQuantizer,
    LowRank,
    Masked,
)
from laconic.tensors.stored import Record

LAYER = Layer("a", "a", "weight", torch.Size((5, 700)), "linear")


@pytest.fixture
def observations():
    def seen(n):
        x, y = torch.randn(n, 700), torch.randn(n, 5)
        return Observation(x, y, torch.randn(n, 5), x + 0.1 * torch.randn(n, 700))

    return [seen(n) for n in (3, 40, 1)]


def stacked(observations, name):
    return torch.cat([getattr(o, name) for o in observations]).double()


def collected(statistic, observations):
    sums = Collected(statistic)
    for seen in observations:
        sums.update(seen)
    return sums


def near(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-4)


def test_second_moment_is_whole_and_symmetric(observations):
    stats = LayerStats(LAYER, {SecondMoment(): collected(SecondMoment(), observations)})
    x = stacked(observations, "inputs")
    mean = stats.mean(SecondMoment())
    assert torch.equal(mean, mean.T) and mean.dtype == torch.float64
    near(mean, x.T @ x / 44)
    assert stats.count(SecondMoment()) == 44


def test_sums_of_everything(observations):
    x, y = stacked(observations, "inputs"), stacked(observations, "outputs")
    g, r = stacked(observations, "gradients"), stacked(observations, "reference")
    norm = collected(InputNorm(), observations).sums
    near(norm["sum"], x.sum(0)), near(norm["square"], x.square().sum(0))
    extremes = collected(AbsMax(), observations).sums
    near(extremes["low"], x.amin(0)), near(extremes["high"], x.amax(0))
    out = collected(OutputMoment(), observations)
    near(out.sums["sum"], y.sum(0))
    near(LayerStats(LAYER, {OutputMoment(): out}).mean(OutputMoment()), y.T @ y / 44)
    near(collected(CrossMoment(), observations).sums["cross"], r.T @ x)
    gradient = collected(GradientMoment(), observations).sums
    each = [o.gradients.double().T @ o.inputs.double() for o in observations]
    near(gradient["gradient"], sum(each)), near(gradient["square"], sum(e.square() for e in each))
    assert gradient["sequences"].item() == 3
    factors = collected(KroneckerFactors(), observations).sums
    (
        near(factors["inputs"].tril(), (x.T @ x).tril()),
        near(factors["gradients"].tril(), (g.T @ g).tril()),
    )


EVERY = (
    SecondMoment(), InputNorm(), AbsMax(), OutputMoment(), CrossMoment(), GradientMoment(),
    KroneckerFactors(), Histogram(),
)  # fmt: skip


@pytest.mark.parametrize("statistic", EVERY, ids=lambda s: s.name)
class TestEvery:
    def test_merging_is_adding(self, statistic, observations):
        first, rest = collected(statistic, observations[:1]), collected(statistic, observations[1:])
        merged = Collected(statistic)
        merged.merge(first)
        merged.merge(rest)
        merged.merge(Collected(statistic))
        whole = collected(statistic, observations)
        assert merged.count == whole.count
        for name, tensor in whole.sums.items():
            near(merged.sums[name], tensor)

    def test_weights_of_a_merge(self, statistic, observations):
        half = Collected(statistic)
        half.merge(collected(statistic, observations), 0.5)
        assert half.count == 22

    def test_tasks_may_run_in_any_order(self, statistic, observations):
        forward, backward = Collected(statistic), Collected(statistic)
        for seen in observations:
            forward.update(seen)
            for task in reversed(backward.tasks(seen)):
                task()
        for name, tensor in forward.sums.items():
            assert torch.equal(tensor, backward.sums[name])


@pytest.mark.parametrize("statistic", [CrossMoment(), GradientMoment(), KroneckerFactors()])
def test_parts_that_are_missing(statistic):
    with pytest.raises(DataError, match="needs"):
        Collected(statistic).update(Observation(torch.randn(2, 3), torch.randn(2, 4)))


class TestLayerStats:
    def test_what_was_not_collected(self):
        with pytest.raises(DataError, match="a: there is no second moment"):
            LayerStats(LAYER)[SecondMoment()]
        assert LayerStats(LAYER).count(SecondMoment()) == 0

    def test_notes_are_said_once(self):
        stats = LayerStats(LAYER)
        stats.note("x"), stats.note("x")
        assert stats.notes == ["x"]

    def test_behind_a_transform(self, observations):
        scale = torch.rand(700) + 0.5
        stats = LayerStats(LAYER, {SecondMoment(): collected(SecondMoment(), observations)})
        x = stacked(observations, "inputs") / scale.double()
        near(stats.behind(ChannelScale(scale)).mean(SecondMoment()), x.T @ x / 44)
        assert LayerStats(LAYER).behind(ChannelScale(scale)).collected == {}


class TestAfterPruning:
    """What a method is given of a layer that an earlier one has changed."""

    keep = torch.arange(24).reshape(4, 6) % 3 > 0

    def test_a_pruned_weight_is_compressed_as_it_is(self):
        pruned, stats = torch.randn(4, 6) * self.keep, LayerStats(LAYER)
        record = Record(Masked.of(pruned, Bitmask.of(self.keep)))
        assert stats.keep() is None
        assert torch.equal(stats.starting_from(record, torch.ones(4, 6)), pruned)
        assert torch.equal(stats.keep(), self.keep)

    def test_kernels_are_seen_as_rows(self):
        stats = LayerStats(LAYER, mask=Bitmask.of(self.keep.reshape(4, 2, 3)))
        assert torch.equal(stats.keep(), self.keep)

    def test_a_dense_weight_is_given_behind_its_transform(self):
        weight, scale = torch.randn(4, 6).bfloat16(), ChannelScale(torch.rand(6) + 0.5)
        stats, coded = LayerStats(LAYER), IntQuantizer(3).quantize(weight)
        assert stats.starting_from(Record(coded), weight) is weight
        behind = stats.starting_from(Record(coded, scale), weight)
        assert torch.equal(behind, scale.fold(weight)) and behind.dtype == torch.bfloat16
        assert stats.mask is None

    def test_factors_are_not_replaced(self):
        record = Record(LowRank(Dense(torch.ones(4, 1)), Dense(torch.ones(1, 6))))
        with pytest.raises(UsageError, match="a is rank 1 .*another grid would undo"):
            LayerStats(LAYER).starting_from(record, torch.ones(4, 6))

    def test_zeros_stay_or_are_reported(self):
        stats = LayerStats(LAYER, mask=Bitmask.of(self.keep))
        grid = IntQuantizer(4, "row", False).quantize(torch.rand(4, 6) + 1)
        assert (stats.masked(grid).dense()[~self.keep] == 0).all() and stats.notes == []
        pairs = CodebookQuantizer(2, 2).quantize(torch.randn(4, 6))
        assert stats.masked(pairs) is pairs
        assert stats.notes == [f"{pairs.format} cannot keep the zeros that were there"]
        assert LayerStats(LAYER).masked(grid) is grid
