import math

import pytest
import torch
from torch import nn

import laconic
from laconic.calibrate.calibration import Calibration, read_calibration
from laconic.calibrate.inputs import Subject
from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import BudgetError, DataError, UsageError
from laconic.models.layout import Layer
from laconic.models.memory import MemorySource
from laconic.quantize import _l2_stages, l2
from laconic.quantize._l2_size import bits_for_ratio, entropy, settle, start, stored_bits
from laconic.quantize._l2_stages import Effort, batched, stages_of
from laconic.quantize._l2_student import Student, tapped
from laconic.quantize.l2 import L2, _CodedWeight
from laconic.tensors.deadzone import DeadZone, dead_zone_codes
from tests.models.test_edits import build
from tests.models.tiny import VOCABULARY

WIDTH = 96


def network() -> nn.Module:
    """A random classifier whose layers differ in size."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )  # fmt: skip
    model[2].weight.data *= 4
    return model.eval()


def stories(model: nn.Module, length=12) -> Calibration:
    windows = torch.randint(4, VOCABULARY, (10, length), generator=torch.Generator().manual_seed(2))
    return read_calibration(windows, Subject(model, None), fitted=8, held_out=2)


@pytest.fixture(scope="module")
def source():
    return MemorySource(network())


@pytest.fixture(scope="module")
def data():
    x = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(60) % 10
    return Calibration(tuple({"x": row[None]} for row in x), labels, range(48), range(48, 60))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(l2.EFFORTS, "small", Effort(2, 6, 12))


def stages(source, data, bits=2.5, **settings):
    usual = {"price": 10.0, "labels": 0.0, "kernel": "cos", "batch": 0, "seed": 0}
    made = stages_of(
        source, data, "cpu", bits=bits, progress=laconic.progress.SILENT, **usual | settings
    )
    start(made.student, bits)
    return made


def taken(plan):
    values = [method.value for method in plan.methods.values()]
    return 8 * sum(v.stored_bytes for v in values) / sum(v.numel for v in values)


class TestPlan:
    @pytest.mark.parametrize("bits", [1.5, 2.5, 4.0])
    def test_takes_the_bits_that_are_asked_for(self, source, data, short, bits):
        plan = L2(bits).plan(source, data)
        assert taken(plan) == pytest.approx(bits, rel=0.01)
        assert set(plan.methods) == {"0", "2", "4"} and not plan.edits
        assert plan.notes[0].startswith(f"l2: {taken(plan):.4g} stored bits a weight")
        assert len([n for n in plan.notes if "transform" in n]) == 2

    def test_loses_less_than_its_start(self, source, data):
        made = stages(source, data, 2.0)
        before = made._divergence(), made._error()
        made.run(Effort(2, 15, 40))
        assert settle(made.student, 2.0) == pytest.approx(2.0, rel=0.01)
        assert made._divergence() < 0.7 * before[0] and made._error() < 0.7 * before[1]

    def test_the_source_stays_and_the_same_comes_out_again(self, source, data, short):
        weights = {name: t.clone() for name, t in source.skeleton.state_dict().items()}
        first, second = (L2(seed=4).plan(source, data) for _ in range(2))
        assert all(torch.equal(t, weights[n]) for n, t in source.skeleton.state_dict().items())
        for name, method in first.methods.items():
            assert torch.equal(method.value.packed, second.methods[name].value.packed)
            assert torch.equal(method.value.step, second.methods[name].value.step)

    @pytest.mark.parametrize("kernel", ["tri", "lin"])
    def test_other_kernels_and_labels(self, source, data, short, kernel):
        plan = L2(3.0, kernel=kernel, labels=0.1, batch=5).plan(source, data)
        assert taken(plan) == pytest.approx(3.0, rel=0.01)

    @pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
    def test_language_models(self, monkeypatch, name):
        monkeypatch.setitem(l2.EFFORTS, "small", Effort(1, 3, 4))
        source = MemorySource(build(name))
        names = {layer.name for block in source.blocks for layer in block.layers}
        plan = L2(6.0, batch=3).plan(source, stories(source.skeleton))
        assert set(plan.methods) == names and taken(plan) == pytest.approx(6.0, rel=0.02)

    def test_sequences_of_unlike_lengths(self, monkeypatch):
        monkeypatch.setitem(l2.EFFORTS, "small", Effort(1, 3, 4))
        source = MemorySource(build("qwen3"))
        parts = [stories(source.skeleton, length).inputs for length in (5, 9)]
        mixed = Calibration((*parts[0], *parts[1]), None, range(20), range(0))
        assert taken(L2(6.0).plan(source, mixed)) == pytest.approx(6.0, rel=0.02)
        numbers = [n for members, _ in batched(mixed, [0, 11, 2, 12]) for n in members]
        assert numbers == [0, 2, 11, 12]


class TestCompress:
    def test_files_hold_what_was_trained(self, data, short, tmp_path, monkeypatch):
        values = {}
        plan = L2.plan

        def watched(self, *args, **more):
            found = plan(self, *args, **more)
            values.update({n: m.value for n, m in found.methods.items()})
            return found

        monkeypatch.setattr(L2, "plan", watched)
        source = MemorySource(network(), factory="tests.quantize.test_l2:network")
        report = laconic.compress(source, L2(3.0), data, out=tmp_path / "out").report
        assert report.bits_per_weight == pytest.approx(3.0, rel=0.01)
        loaded = laconic.load(tmp_path / "out", trust=True)
        for name, value in values.items():
            assert torch.equal(loaded.get_submodule(name).weight.dense(), value.dense())

    @pytest.mark.parametrize("ratio", [6, 10])
    def test_a_ratio_is_of_the_whole_file(self, data, short, tmp_path, ratio):
        source = MemorySource(network(), factory="tests.quantize.test_l2:network")
        report = laconic.compress(source, L2(ratio=ratio), data, out=tmp_path / "out").report
        size = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
        assert size == report.stored_bytes
        whole = 4 * sum(p.numel() for p in source.skeleton.parameters())
        assert whole / size == pytest.approx(ratio, rel=0.05)

    def test_is_followed_by_others(self, data, short):
        from laconic.quantize.rtn import RTN

        model = network()
        report = laconic.compress(model, [L2(3.0), RTN(bits=4)], list(data.inputs)).report
        assert {layer["format"] for layer in report.layers} == {"int4 g64"}


class TestSize:
    @pytest.mark.parametrize("bits", [1.0, 2.3, 5.0])
    def test_settles(self, source, bits):
        student = Student(source)
        start(student, bits)
        found = stored_bits(student) / student.weights
        assert found == pytest.approx(bits, rel=5e-3)
        assert settle(student, bits) == pytest.approx(found, rel=1e-3)
        assert student.beside == pytest.approx(stored_bits(student) - entropy(student))

    @pytest.mark.parametrize("bits", [1.5, 3.0])
    def test_the_counter_agrees_with_the_entropy(self, source, bits):
        student = Student(source)
        start(student, bits)
        assert float(student.bits()) == pytest.approx(entropy(student), rel=0.02)
        assert stored_bits(student) == pytest.approx(entropy(student) + student.beside)

    def test_a_sample_counts_for_the_whole(self, source, monkeypatch):
        student = Student(source)
        start(student, 2.5)
        monkeypatch.setattr("laconic.quantize._l2_student.COUNTED", 1 << 11)
        assert float(student.bits()) == pytest.approx(entropy(student), rel=0.03)

    def test_out_of_reach(self, source, data):
        with pytest.raises(BudgetError, match="headers and tables of 3 layers alone take"):
            L2(0.02).plan(source, data)
        with pytest.raises(BudgetError, match="the ratio must be below"):
            bits_for_ratio(source, 500)

    def test_layers_of_zeros(self, data, short):
        model = network()
        model[2].weight.data.zero_()
        plan = L2(3.0).plan(MemorySource(model), data)
        assert (plan.methods["2"].value.dense() == 0).all()
        assert taken(plan) == pytest.approx(3.0, rel=0.02)


class TestTraining:
    def test_gradients_of_grids_are_those_of_a_quadratic_error(self, source):
        student = Student(source)
        start(student, 4.0)
        student.log_step.requires_grad_(True)
        student.log_edge.requires_grad_(True)
        student.install()
        value = student.model.get_submodule("0").weight.value
        lost = (value - student.latents["0"]).square().sum()
        lost.backward()
        total = student.log_step.grad[0] + student.log_edge.grad[0]
        assert float(total) == pytest.approx(2 * float(lost.detach()), rel=1e-3)
        assert student.log_step.grad[1:].abs().sum() == 0

    def test_the_rate_falls_where_bits_cost(self, source, data):
        made = stages(source, data, 4.0)
        student, before = made.student, float(made.student.bits())
        grids = {"params": [student.log_edge, student.log_step], "lr": 0.03}
        made._fit(lambda _, numbers: student.bits().float() / before, [grids], 60, 0)
        assert float(student.bits()) < 0.8 * before

    def test_what_diverges_is_undone(self, source, data, monkeypatch):
        made = stages(source, data)
        kept = made.student.value(0).packed
        error = made._error()
        monkeypatch.setattr(_l2_stages, "LATENT_RATE", math.inf)
        made.reconstruct(8, 0)
        assert "undone: the" in made.notes[-1] and made._error() == error
        monkeypatch.setattr(_l2_stages, "GRID_RATE", math.inf)
        made.transform(8, 0)
        assert "undone: the" in made.notes[-1]
        assert torch.equal(made.student.value(0).packed, kept)

    def test_a_stage_that_makes_it_worse_is_undone(self, source, data, monkeypatch):
        made = stages(source, data)
        edge = made.student.log_edge.detach().clone()
        monkeypatch.setattr(_l2_stages, "GRID_RATE", 2.0)
        made.transform(3, 0)
        assert made.notes[-1].endswith("; undone")
        assert torch.allclose(made.student.log_edge, edge, atol=1e-3)

    @pytest.mark.parametrize(
        ("moved", "rounds"), [([True] * 4, 4), ([True, False], 2), ([False, True, True, False], 4)]
    )
    def test_rounds_end_where_grids_stay(self, source, data, monkeypatch, moved, rounds):
        made, left, fitted = stages(source, data), iter(moved), []
        monkeypatch.setattr(made, "transform", lambda steps, seed: next(left))
        monkeypatch.setattr(made, "reconstruct", lambda steps, seed: fitted.append(steps))
        made.run(_l2_stages.Effort(4, 1, 2))
        assert len(fitted) == rounds

    def test_answers_beyond_the_room_are_computed_again(self, source, data, monkeypatch):
        monkeypatch.setattr("laconic.quantize._l2_student.KEPT_BYTES", 0)
        teacher = stages(source, data).teacher
        first, again = teacher.answers(3), teacher.answers(3)
        assert first is not again and all(map(torch.equal, first, again))

    def test_taps_are_spread_and_end_with_the_last(self, source):
        assert tapped(source) == ["0", "2", "4"]
        assert tapped(MemorySource(build("qwen3"))) == [f"model.layers.{i}" for i in range(4)]

    def test_codes_round_as_they_are_stored(self, source):
        student = Student(source)
        start(student, 3.0)
        student.install()
        for number, name in enumerate(student.names):
            computed = student.model.get_submodule(name).weight.dense()
            assert torch.equal(student.value(number).dense(), computed)
            codes = dead_zone_codes(student.latents[name], *student.grid(number)).round()
            assert torch.equal(student.value(number).codes(), codes.int())


def test_settings_as_text():
    assert L2.from_settings({"ratio": "10", "effort": "full"}) == L2(ratio=10.0, effort="full")


class TestBadInput:
    def test_no_data(self, source, data):
        empty = Calibration(data.inputs, None, range(0), range(3))
        for given in (None, empty):
            with pytest.raises(DataError, match="give --data"):
                L2().plan(source, given)

    def test_data_of_another_shape(self, source):
        rows = tuple({"x": torch.randn(1, 7)} for _ in range(4))
        with pytest.raises(DataError, match="cannot take this data"):
            L2().plan(source, Calibration(rows, None, range(4), range(0)))

    def test_answers_that_are_not_finite(self, source):
        rows = tuple({"x": torch.full((1, WIDTH), math.inf)} for _ in range(4))
        with pytest.raises(DataError, match="not finite"):
            L2().plan(source, Calibration(rows, None, range(4), range(0)))

    def test_answers_that_are_no_logits(self):
        source = MemorySource(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)))
        rows = tuple({"x": torch.randn(1, 3, 8, 8)} for _ in range(4))
        with pytest.raises(DataError, match="gives no logits"):
            L2().plan(source, Calibration(rows, None, range(4), range(0)))

    def test_codes_of_another_layer(self):
        value = DeadZone.of(torch.randn(4, 6), torch.tensor(0.5), torch.tensor(1.0))
        method = _CodedWeight(value)
        stats = LayerStats(Layer("layer", "layer", "weight", torch.Size((4, 5)), "linear"))
        with pytest.raises(UsageError, match="layer has shape"):
            method.compress_weight(torch.zeros(4, 5), stats)
        assert method.compress_weight(torch.zeros(4, 6), stats) is value
        assert method.settings() == {"edge": 0.5, "step": 1.0}

    @pytest.mark.parametrize(
        "settings",
        [
            {"bits": 0.0}, {"bits": 8.5}, {"ratio": 1.0}, {"effort": "huge"}, {"kernel": "box"}, {"price": 0.0},
            {"labels": -0.1}, {"batch": -1}, {"seed": -1}, {"bits": math.nan},
        ],
    )  # fmt: skip
    def test_settings_out_of_range(self, settings):
        with pytest.raises(UsageError):
            L2(**settings)
