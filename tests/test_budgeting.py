import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from laconic.allocate.budget import Budget
from laconic.budgeting import best_of, plan_budget
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import (
    AbsMax,
    Collected,
    InputNorm,
    Observation,
    SecondMoment,
)
from laconic.compression import compress
from laconic.errors import BadWeights, BudgetError, DataError
from laconic.measure.flops import count, count_parameters
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.layout import Layer
from laconic.models.memory import MemorySource
from laconic.models.open import open_source
from laconic.planning import ALIKE, POWERS, OptionTable, Plan, PlannedStep, planned_steps
from laconic.probing import measure_options, options_of, output_error, untouched_bytes
from laconic.prune.magnitude import Magnitude
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense
from laconic.tensors.stored import Record
from laconic.tensors.transforms import ChannelScale
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY

ALL = ("embeddings", "rest")


@pytest.fixture(scope="module")
def llama(tiny_models):
    return HuggingFaceSource(tiny_models["llama"])


@pytest.fixture(scope="module")
def table(llama):
    return measure_options(llama, RTN())


@pytest.fixture(scope="class")
def measured_once():
    """Makes plans of one model share what was measured; only `also` may differ."""
    tables = {}

    def measure(source, method, *, also=(), size=None, **rest):
        if also not in tables:
            tables[also] = measure_options(source, method, also=also)
        return tables[also]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laconic.budgeting.measure_options", measure)
        yield


class TestMeasuring:
    def test_one_row_for_each_layer_and_one_column_for_each_option(self, llama, table):
        layers = [la for block in llama.blocks for la in block.layers]
        assert table.layers == [la.name for la in layers]
        assert table.cost.shape == table.error.shape == (14, len(RTN().options()))
        assert table.weights == sum(la.shape.numel() for la in layers)

    def test_what_is_measured_is_what_will_be_stored(self, llama, table):
        from laconic.probing import HEADER_BYTES

        layer = llama.blocks[1].layers[3]
        weight = layer.take(llama.read([layer.parameter]))
        for number in (0, 5, len(table.options) - 1):
            value = table.options[number][0].compress_weight(weight)
            row = table.layers.index(layer.name)
            assert table.cost[row, number] == value.stored_bytes + HEADER_BYTES

    def test_layers_that_are_asked_for_come_last(self, llama):
        assert measure_options(llama, RTN(), also=ALL).layers[-2:] == [
            "model.embed_tokens",
            "lm_head",
        ]

    def test_damaged_weights_are_named(self):
        model = nn.Sequential(nn.Linear(4, 4))
        model[0].weight.data[0, 0] = float("inf")
        with pytest.raises(BadWeights, match=r"0\.weight"):
            plan_budget(MemorySource(model), RTN(), Budget.parse("4bit"))

    def test_more_bits_cost_more_and_lose_less(self, table):
        per_row = [k for k, option in enumerate(table.options) if option[0].group == "row"]
        assert (np.diff(table.cost[:, per_row])[:, :4] > 0).all()  # then layers are too small
        assert (np.diff(table.error[:, per_row]) < 0).all()


class TestUntouched:
    @pytest.mark.parametrize("name", TINY)
    @pytest.mark.parametrize("also", [(), ALL], ids=["blocks", "all"])
    def test_is_an_upper_estimate_of_the_file(self, name, also, tiny_models, tmp_path):
        source = open_source(tiny_models[name])
        report = compress(tiny_models[name], RTN(8), out=tmp_path / "out", also=also).report
        compressed = sum(la["bits_per_weight"] * la["weights"] / 8 for la in report.layers)
        found = report.stored_bytes - compressed
        estimate = untouched_bytes(source, also)
        assert found - 120 * len(report.layers) <= estimate <= found + 4000

    def test_uncoded_is_what_memory_holds(self, llama):
        coded, uncoded = untouched_bytes(llama, ()), untouched_bytes(llama, (), coded=False)
        assert coded < uncoded
        assert untouched_bytes(llama, ALL) == untouched_bytes(llama, ALL, coded=False)


class TestSpreading:
    def test_within_the_budget_and_better_than_one_setting_for_all(self, table):
        for uniform in range(len(table.options)):
            budget = table.cost[:, uniform].sum()
            (step,) = table.spread(budget)
            picks = [table.options.index((step.choices[name],)) for name in table.layers]
            rows = np.arange(len(picks))
            assert table.cost[rows, picks].sum() <= budget
            assert table.error[rows, picks].sum() <= table.error[:, uniform].sum() + 1e-9

    def test_layers_that_matter_get_more(self):
        options = ((RTN(2),), (RTN(4),), (RTN(8),))
        cost = np.array([[2.0, 4, 8], [2, 4, 8]])
        error = np.array([[100.0, 10, 0], [1, 0.1, 0]])
        (step,) = OptionTable(["much", "little"], options, cost, error, 10).spread(10)
        assert step.choices == {"much": RTN(8), "little": RTN(2)}

    def test_what_layers_add_to_the_loss_may_count_in_part(self):
        """A layer that loses less, but matters 100 times as much, gets the bits where that counts."""
        table = two_layers()
        picks = {by: table.spread(10, by)[0].choices for by in POWERS}
        assert picks["loss"] == {"quiet": RTN(2), "loud": RTN(8)}
        assert picks["energy"] == {"quiet": RTN(8), "loud": RTN(2)}
        ratio = table.weighed("root of loss")[:, :2] / table.weighed("energy")[:, :2]
        assert np.allclose(ratio, [[1], [10]])

    def test_one_strength_for_all(self):
        (step,) = two_layers().spread(9, ALIKE)
        assert step.choices == {"quiet": RTN(4), "loud": RTN(4)}
        with pytest.raises(BudgetError, match="fits all layers"):
            two_layers().spread(3, ALIKE)


class TestTrying:
    """Plans are made in several ways, and the model says which it is."""

    @pytest.mark.parametrize("best", [*POWERS, ALIKE])
    def test_the_least_is_made(self, best):
        table = two_layers()
        wanted = table.spread(10, best)
        trial = FakeTrial(wanted)
        plan = best_of(Plan(table.spread(10), table=table, target=10), trial)
        assert plan.steps == wanted
        assert f"on {trial.sequences} sequences" in plan.notes[0] and "0.5 by" in plan.notes[0]

    def test_a_plan_that_is_too_large_is_made_again_in_the_same_way(self):
        table = replace(two_layers(), cost=100 * two_layers().cost)
        plan = Plan(table.spread(1000), 5000.0, table=table, target=1000.0)
        chosen = best_of(plan, FakeTrial(table.spread(1000, ALIKE)))
        assert chosen.by == ALIKE
        assert chosen.tightened(5036).steps == table.spread(900, ALIKE)

    def test_alike_plans_are_not_tried(self):
        table = two_layers()
        plan = Plan(table.spread(100), table=table, target=100)
        assert best_of(plan, None) is plan

    def test_with_data(self, tiny_models, tmp_path):
        report = compress(
            tiny_models["llama"], GPTQ(), data("llama", 15), budget="4.2bit resident",
            out=tmp_path / "o",
        ).report  # fmt: skip
        assert any(note.startswith("plans tried on 3 sequences") for note in report.notes)

    def test_why_it_was_not(self, tiny_models, tmp_path, monkeypatch):
        monkeypatch.setattr("laconic.calibrate.outline.LARGEST", 1000)
        report = compress(
            tiny_models["llama"], GPTQ(), data("llama", 15), budget="4.2bit resident",
            out=tmp_path / "o",
        ).report  # fmt: skip
        assert any("was not tried" in note and "8 GiB" in note for note in report.notes)


def two_layers():
    """A loud layer loses less of its energy, which counts for more."""
    options = ((RTN(2),), (RTN(4),), (RTN(8),))
    cost, error = np.array([[2.0, 4, 8]] * 2), np.array([[10.0, 9, 0], [1, 0.9, 0]])
    return OptionTable(["quiet", "loud"], options, cost, error, 10, np.array([1.0, 100]))


class FakeTrial:
    """Finds that one plan moves the answers least."""

    sequences = 7

    def __init__(self, best):
        self.best = best

    def __call__(self, steps):
        return 0.5 if list(steps) == self.best else 1.0


@pytest.mark.usefixtures("measured_once")
class TestBudgets:
    @pytest.mark.parametrize("text", ["1bit", "20%", "1kB"])
    @pytest.mark.parametrize("also", [(), ALL], ids=["blocks", "all"])
    @pytest.mark.parametrize("coded", [True, False])
    def test_unreachable_ones_name_the_smallest_which_can_be_reached(
        self, llama, text, also, coded
    ):
        with pytest.raises(BudgetError, match="cannot be reached") as error:
            plan_budget(llama, RTN(), Budget.parse(text), also=also, coded=coded)
        message = str(error.value)
        named = re.search(r"smallest is about (\S+)", message)[1]
        plan = plan_budget(llama, RTN(), Budget.parse(named), also=also, coded=coded)
        assert len(plan.steps[0].choices) == 14 + len(also)
        assert ("--also" in message) == (text != "1bit")

    def test_time_is_not_what_a_layer_method_saves(self, llama):
        with pytest.raises(BudgetError, match="not how long they take: give the budget as"):
            plan_budget(llama, RTN(), Budget.parse("20ms"))

    def test_more_budget_never_loses_more(self, llama):
        lost = []
        for bits in (5, 6, 7, 8, 9, 20):
            plan = plan_budget(llama, RTN(), Budget.parse(f"{bits}bit"))
            choices = plan.steps[0].choices
            picks = [plan.table.options.index((choices[n],)) for n in plan.table.layers]
            lost.append(plan.table.error[np.arange(14), picks].sum())
        assert lost == sorted(lost, reverse=True)
        assert lost[-1] == plan.table.error.min(axis=1).sum()

    def test_bits_limit_the_layers_and_the_others_the_file(self, llama, table):
        bits = plan_budget(llama, RTN(), Budget.parse("6bit"))
        assert bits.of_layers and bits.limit == 6 * table.weights / 8
        share = plan_budget(llama, RTN(), Budget.parse("60%"))
        assert not share.of_layers and share.limit == pytest.approx(0.6 * llama.dense_bytes)


class TestCounts:
    """Budgets of parameters and operations."""

    def calibration(self):
        ids = torch.arange(32)[None] % 50
        return Calibration(({"input_ids": ids},), None, range(1), range(0))

    def kept(self, plan, llama):
        """Parameters that the plan keeps of the layers, and what they were."""
        (step,) = plan.steps
        layers = [la for block in llama.blocks for la in block.layers]
        dense = {la.name: la.shape.numel() for la in layers}
        return sum((1 - step.choices[n].sparsity) * size for n, size in dense.items()), dense

    @pytest.mark.parametrize("share", [0.4, 0.75])
    def test_parameters(self, llama, share):
        plan = plan_budget(llama, Magnitude(), Budget.parse(f"{share}x params"))
        kept, dense = self.kept(plan, llama)
        whole = sum(count_parameters(llama).blocks.values())
        rest = whole - sum(dense.values())
        assert 0.98 * share * whole < kept + rest <= share * whole + 2 * len(dense)

    def test_operations(self, llama):
        calibration = self.calibration()
        plan = plan_budget(llama, Magnitude(), Budget.parse("0.8x flops"), calibration=calibration)
        counts = count(llama, calibration.inputs[0])
        kept, dense = self.kept(plan, llama)
        layers = 32 * sum(dense.values())
        assert 0.97 * 0.8 < (32 * kept + counts.macs - layers) / counts.macs <= 0.801

    def test_operations_need_data(self, llama):
        with pytest.raises(DataError, match="needs data"):
            plan_budget(llama, Magnitude(), Budget.parse("0.8x flops"))

    @pytest.mark.parametrize("text", ["0.7x params", "0.6x flops"])
    def test_what_a_quantizer_cannot_save(self, llama, text):
        with pytest.raises(BudgetError, match="rtn saves stored bytes, not .*give the budget as"):
            plan_budget(llama, RTN(), Budget.parse(text), calibration=self.calibration())

    def test_unreachable_ones_name_the_smallest(self, llama):
        with pytest.raises(BudgetError, match="smallest is about 0.1") as error:
            plan_budget(llama, Magnitude(), Budget.parse("0.01x params"))
        named = re.search(r"smallest is about (.+)", str(error.value))[1]
        assert plan_budget(llama, Magnitude(), Budget.parse(named)).steps


class TestPlan:
    def test_a_layer_may_have_settings_of_its_own(self, llama):
        first, second = llama.blocks[0].layers[:2]
        weight = first.take(llama.read([first.parameter]))
        step = PlannedStep(RTN(4), {first.name: RTN(2)})
        record, stats = Record(Dense(weight)), LayerStats(first)
        assert step.revise(first, weight, record, stats).weight.bits == 2
        assert step.revise(second, weight, record, stats).weight.bits == 4
        only = PlannedStep(RTN(4), {first.name: RTN(2)}, only=True)
        assert only.revise(second, weight, record, stats) is record

    def test_a_step_for_each_class_of_methods(self):
        (step,) = planned_steps({"a": RTN(2), "b": RTN(3)})
        assert step.only and step.choices == {"a": RTN(2), "b": RTN(3)}
        assert planned_steps({}) == []

    def test_tightened_aims_lower(self, llama):
        plan = plan_budget(llama, RTN(), Budget.parse("70%"))
        tighter = plan.tightened(int(plan.limit) + 500)
        assert tighter.target == plan.target - (int(plan.limit) + 500 - plan.limit) - 64
        assert tighter.limit == plan.limit
        with pytest.raises(BudgetError, match="smallest that was made has 90000"):
            plan.tightened(90_000)

    def test_recipe(self):
        assert Plan.of([RTN(4)]).recipe() == [{"method": "rtn", "settings": RTN(4).settings()}]
        (entry,) = Plan([PlannedStep(RTN(4), {"a": RTN(2)})]).recipe()
        assert entry["layers"] == {"a": RTN(2).settings()}

    def test_chains_with_too_many_strengths_are_refused(self):
        assert len(options_of((RTN(), RTN()))) == len(RTN().options()) ** 2
        with pytest.raises(BudgetError, match="combinations"):
            options_of((RTN(), RTN(), RTN()))


class TestSamples:
    """Options of large layers are measured on some of their rows; the result is held to the budget."""

    @pytest.fixture
    def model(self):
        """Every second row is noise, the others are almost nothing; the sample sees the latter."""
        model = nn.Sequential(nn.Linear(512, 1024), nn.Linear(1024, 512))
        for layer in model:
            nn.init.normal_(layer.weight)
            layer.weight.data[::2, 1:] *= 1e-3
        return model

    @pytest.mark.parametrize("budget", ["5bit", "16%"])
    def test_the_budget_is_met_all_the_same(self, model, budget):
        report = compress(model, RTN(), budget=budget).report
        assert report.bits_per_weight <= 5 if budget == "5bit" else report.kept <= 0.16

    def test_costs_are_scaled_to_the_layer(self):
        model = nn.Sequential(nn.Linear(512, 1024))
        table = measure_options(MemorySource(model), RTN(range="minmax"))
        weight = model[0].weight.data
        for number in (0, 5, len(table.options) - 1):
            stored = table.options[number][0].compress_weight(weight).stored_bytes
            assert table.cost[0, number] == pytest.approx(stored, rel=0.03)


class TestErrorOfOptions:
    """The error by which options of a layer are compared."""

    def stats(self, x, *statistics):
        layer = Layer("l", "l", "weight", torch.Size((4, 8)), "linear", False, None)
        sums = {s: Collected(s) for s in statistics}
        seen = Observation(x, None)
        for collected in sums.values():
            for task in collected.tasks(seen):
                task()
        return LayerStats(layer, sums)

    def test_norms_alone_count_as_uncorrelated_inputs(self):
        weight, x = torch.randn(4, 8), torch.randn(50, 8) * torch.arange(1, 9)
        value = Dense(weight + torch.randn(4, 8) / 10)
        squares = x.double().square().mean(0)
        lost = (value.dense() - weight).double()
        expected = (lost.square() @ squares).sum() / (weight.double().square() @ squares).sum()
        assert output_error(weight, value, self.stats(x, InputNorm())) == pytest.approx(
            expected.item()
        )
        both = output_error(weight, value, self.stats(x, InputNorm(), SecondMoment()))
        outputs = (x @ lost.float().T).square().sum() / (x @ weight.T).square().sum()
        assert both == pytest.approx(outputs.item(), rel=1e-4)
        plain = output_error(weight, value, self.stats(x))
        assert plain == pytest.approx(
            (lost.square().sum() / weight.square().sum()).item(), rel=1e-4
        )

    def test_behind_a_transform(self):
        x, scale = torch.randn(50, 8), ChannelScale(torch.rand(8) + 0.5)
        found = self.stats(x, InputNorm(), SecondMoment(), AbsMax()).behind(scale)
        there = self.stats(scale(x), InputNorm(), SecondMoment())
        for statistic in (InputNorm(), SecondMoment()):
            for name, value in there[statistic].items():
                if name != "moment":
                    torch.testing.assert_close(found[statistic][name], value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.mean(SecondMoment()), there.mean(SecondMoment()), rtol=1e-4, atol=1e-4
        )
        with pytest.raises(DataError, match="extremes behind a channel scale cannot be told"):
            found[AbsMax()]
