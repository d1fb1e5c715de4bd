import numpy as np
import pytest
import torch
from torch import nn

from laconic.calibrate.calibration import Calibration
from laconic.compression import compress
from laconic.errors import BudgetError, DataError, UsageError
from laconic.loading import load
from laconic.models.memory import MemorySource
from laconic.quantize._mlorq_candidates import (
    Candidates,
    Choice,
    candidates,
    factor_grids,
    grouped_bytes,
    row_factors,
)
from laconic.quantize._mlorq_search import allocate
from laconic.quantize.adaround import AdaRound
from laconic.quantize.mlorq import MLoRQ, QuantizedFactors
from laconic.quantize.rtn import RTN
from laconic.tensors import LowRank
from tests.calibrate.test_calibrated import data
from tests.numerics.layers import layer as layer_of_moment
from tests.prune.layers import layer, lost, stats_of

WIDTHS, FACTORS = (2, 3, 4, 6, 8), (4, 6, 8)
QUICK = {"steps": 10, "predictions": 48, "points": 3, "factors": "4 6 8"}


def calibration(rows):
    return Calibration(tuple(rows), None, range(len(rows) - 2), range(len(rows) - 2, len(rows)))


class TestFactors:
    def test_is_two_integer_matrices(self):
        weight, x = layer(rows=24, columns=48)
        method = QuantizedFactors(rank=6, left=4, right=8, steps=5)
        value = method.compress_weight(weight, stats_of(method, weight, x))
        assert isinstance(value, LowRank) and value.left.shape == (24, 6)
        assert (value.left.bits, value.right.bits) == (4, 8)
        assert value.resident_bytes == Choice(rank=6, left=4, right=8).bytes(24, 48)

    def test_learning_loses_less(self):
        weight, x = layer(rows=48, columns=96)
        losses = [
            lost(weight, m.compress_weight(weight, stats_of(m, weight, x)), x)
            for m in (QuantizedFactors(16, 3, 3, steps) for steps in (0, 200))
        ]
        assert losses[1] < 0.97 * losses[0]

    def test_eight_bits_are_near_the_unrounded_factors(self):
        weight, x = layer(rows=48, columns=96)
        method = QuantizedFactors(16, 8, 8, 0)
        stats = stats_of(method, weight, x)
        moment = stats.mean(*method.wants)
        a, b, _ = row_factors(weight, torch.ones(48), moment, 16)
        whole = ((weight - a @ b) @ x.double().T).square().sum() / (weight @ x.T).square().sum()
        assert lost(weight, method.compress_weight(weight, stats), x) == pytest.approx(
            float(whole), rel=0.02
        )

    def test_rows_that_count_more_lose_less(self):
        weight, x = layer(rows=24, columns=48)
        rows = torch.ones(24)
        rows[:4] = 100
        off = []
        for counts in (None, rows):
            method = QuantizedFactors(6, 8, 8, 0, rows=counts)
            value = method.compress_weight(weight, stats_of(method, weight, x)).dense()
            off.append(((value - weight) @ x.T).square().sum(dim=1)[:4].sum())
        assert off[1] < 0.5 * off[0]

    def test_a_weight_of_low_rank_is_kept(self):
        weight, x = layer(rows=32, columns=48)
        weight = torch.randn(32, 4) @ torch.randn(4, 48)
        method = QuantizedFactors(4, 8, 8, 20)
        assert lost(weight, method.compress_weight(weight, stats_of(method, weight, x)), x) < 1e-3

    def test_nothing_is_nothing(self):
        weight = torch.zeros(0, 8)
        assert QuantizedFactors().compress_weight(weight, stats_of(RTN(), weight, None)).shape == (
            0,
            8,
        )

    def test_more_rank_than_there_is(self):
        weight, x = layer(rows=4, columns=8)
        method = QuantizedFactors(rank=32, steps=0)
        stats = stats_of(method, weight, x)
        assert method.compress_weight(weight, stats).left.shape == (4, 4)
        assert any("more than the layer has" in note for note in stats.notes)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"rank": 0}, "rank"), ({"left": 1}, "left"), ({"right": 9}, "right"), ({"rank": 2.5}, "rank"), ({"inputs": "all"}, "inputs"), ({"steps": -1}, "steps")],
    )  # fmt: skip
    def test_settings_that_cannot_be(self, settings, message):
        with pytest.raises(UsageError, match=message):
            QuantizedFactors(**settings)


@pytest.fixture(scope="module", params=["activation", "none"])
def made(request):
    weight, moment = layer_of_moment(rows=40, columns=56)
    derivatives = torch.rand(40, 56) * torch.logspace(-2, 0, 40).unsqueeze(1)
    moment = moment if request.param == "activation" else None
    found = candidates(weight, derivatives, moment, widths=WIDTHS, factors=FACTORS)
    return weight, derivatives, moment, found


class TestCandidates:
    def test_errors_of_all_ranks_are_those_of_the_products(self, made):
        """The fast sums over ranks, beside the definition with the dense difference."""
        weight, derivatives, moment, found = made
        counts = found.rows if moment is not None else derivatives.amax(dim=1)
        counts = counts.double()
        h = torch.eye(56).double() if moment is None else moment
        empty = (counts * ((weight.double() @ h) * weight.double()).sum(dim=1)).sum()
        for choice, error in zip(found.choices, found.error):
            off = found.dense(choice).double() - weight
            expected = (counts * ((off @ h) * off).sum(dim=1)).sum() / empty
            assert error == pytest.approx(float(expected), rel=1e-4, abs=1e-7)

    def test_bytes_are_what_laconic_keeps(self, made):
        weight, *_, found = made
        for bits, value in found.plain.items():
            assert value.resident_bytes == Choice(bits).bytes(*weight.shape)

    def test_every_plain_width_and_only_undominated_factors(self, made):
        *_, found = made
        assert [c.bits for c in found.choices if c.bits] == list(WIDTHS)
        assert any(c.rank for c in found.choices)
        for i, choice in enumerate(found.choices):
            if choice.rank:
                beaten = (found.bytes <= found.bytes[i]) & (found.error < found.error[i])
                assert not beaten.any()
                assert found.bytes[i] < grouped_bytes(*found.shape, 8) and choice.rank >= 2

    def test_interpolates_between_what_was_measured(self, made):
        *_, found = made
        truth = 3 * found.error + 0.5  # as if the model lost in proportion
        numbers = found.measured(3)
        scores = found.scores({n: truth[n] for n in numbers})
        np.testing.assert_allclose(scores, truth, rtol=1e-9)
        for pair in found.pairs().values():
            assert {pair[0], pair[-1]} <= set(numbers)

    def test_layers_that_no_data_reached(self):
        weight, _ = layer_of_moment(rows=8, columns=8)
        found = candidates(weight, torch.zeros(8, 8), None, widths=(4,), factors=(4,))
        assert np.isfinite(found.error).all()

    def test_a_weight_of_zeros(self):
        found = candidates(torch.zeros(8, 16), torch.ones(8, 16), None, widths=(2, 4), factors=(4,))
        assert np.isfinite(found.error).all() and {c.bits for c in found.choices} >= {2, 4}

    def test_thin_layers_have_no_factors(self):
        found = candidates(torch.randn(1, 16), torch.ones(1, 16), None, widths=(4,), factors=(4,))
        assert found.choices == [Choice(4)] and isinstance(found, Candidates)

    def test_ranges_of_the_left_factor_are_weighted_by_energies(self):
        """What rounding A adds is orthogonal to what A B lacks: errors of W' split exactly."""
        weight, moment = layer_of_moment(rows=30, columns=40)
        a, b, energy = row_factors(weight, torch.ones(30), moment, 10)
        grid, _ = factor_grids(a, b, energy, moment, (4, 4))
        from laconic.tensors import IntQuantizer

        quantizer = IntQuantizer(4, "row", False)
        rounded = quantizer.decode(quantizer.encode(a.float(), grid), grid).double()
        total, truncated, added = (
            ((off @ moment) * off).sum()
            for off in (rounded @ b - weight, a @ b - weight, (rounded - a) @ b)
        )
        assert float(total) == pytest.approx(float(truncated + added), rel=1e-3)


@pytest.fixture(scope="module")
def low_rank_model():
    """The first layer has a rank of 8, the second all ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[0].weight.data = torch.randn(64, 8) @ torch.randn(8, 64) / 8
    return model


@pytest.fixture(scope="module")
def rows():
    draw = torch.Generator().manual_seed(0)
    return [{"input": torch.randn(16, 64, generator=draw)} for _ in range(6)]


@pytest.fixture(scope="module")
def search(low_rank_model, rows):
    return MLoRQ(**QUICK).search(MemorySource(low_rank_model), calibration(rows))


class TestSearch:
    def test_a_layer_of_low_rank_becomes_factors(self, search):
        choices = allocate(search, 4.0).choices
        assert 8 <= choices["0"].rank <= 12 and choices["2"].bits

    @pytest.mark.parametrize("bits", [2.5, 3.0, 4.0, 6.0])
    def test_fits_its_budget(self, search, bits):
        found = allocate(search, bits)
        taken = sum(c.bytes(64, 64) for c in found.choices.values())
        assert 8 * taken / search.weights == pytest.approx(found.bits) and found.bits <= bits
        assert min(found.measured.values()) == found.measured[found.kind]

    def test_factors_never_make_the_sum_of_scores_worse(self, search):
        from laconic.allocate.knapsack import knapsack

        for bits in (2.5, 3.0, 4.0):
            both = [search.options(factors=f) for f in (True, False)]
            sums = []
            for table in both:
                chosen = knapsack(table.cost, table.error, bits * search.weights / 8)
                sums.append(table.total(chosen)[1])
            assert sums[0] <= sums[1]

    def test_the_model_is_dense_again(self, search):
        allocate(search, 3.0)
        assert search.error() < 1e-10

    def test_scores_of_measured_forms_are_those_of_the_model(self, search):
        for name, made in search.layers.items():
            for number in search.measured[name]:
                score = search.whole({name: made.choices[number]})
                assert search.scores[name][number] == pytest.approx(score, rel=1e-3, abs=1e-9)

    def test_a_budget_that_cannot_be_met(self, search):
        with pytest.raises(BudgetError, match="cannot be met: the smallest forms take"):
            allocate(search, 0.5)


@pytest.mark.parametrize("name", ["llama", "vit", "qwen3_moe", "gpt2"])
def test_whole_models(name, tiny_models, tmp_path):
    out = tmp_path / "o"
    report = compress(tiny_models[name], MLoRQ(bits=5, **QUICK), data(name), out=out).report
    assert report.resident_bits_per_weight <= 5.01
    assert any("mlorq at 5 bits" in note for note in report.notes)
    load(out)


def test_plans_a_method_for_every_layer(low_rank_model, rows):
    plan = MLoRQ(bits=4, **QUICK).plan(MemorySource(low_rank_model), calibration(rows))
    assert isinstance(plan.methods["0"], QuantizedFactors) and 8 <= plan.methods["0"].rank <= 12
    assert isinstance(plan.methods["2"], AdaRound) and plan.methods["2"].steps == 10
    alike = MLoRQ(bits=4, inputs="none", **QUICK | {"factors": ""})
    plan = alike.plan(MemorySource(low_rank_model), calibration(rows))
    assert all(isinstance(m, AdaRound) for m in plan.methods.values())


def test_convolutions_are_not_factored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten())
    rows = [{"input": torch.randn(1, 8, 6, 6)} for _ in range(4)]
    search = MLoRQ(**QUICK).search(MemorySource(model), calibration(rows))
    assert not any(c.rank for c in search.layers["0"].choices)
    assert any(c.rank for c in search.layers["2"].choices)
    report = compress(model, MLoRQ(bits=4, **QUICK), rows).report
    assert report.resident_bits_per_weight <= 4.01


def test_the_same_again(tiny_models, tmp_path):
    for folder in ("a", "b"):
        compress(tiny_models["vit"], MLoRQ(bits=5, **QUICK), data("vit"), out=tmp_path / folder)
    one, other = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("a", "b"))
    assert one == other


def test_needs_data(low_rank_model):
    with pytest.raises(DataError, match="give --data"):
        MLoRQ().plan(MemorySource(low_rank_model), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "bits must be above 0"), ({"widths": ""}, "names no width"), ({"widths": "2 9"}, "from 2 to 8"),
        ({"factors": "four"}, "factors are numbers"), ({"points": 1}, "points"), ({"predictions": 0}, "at least"),
        ({"inputs": "x"}, "inputs"), ({"steps": -1}, "steps"), ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        MLoRQ(**settings)
