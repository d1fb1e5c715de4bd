import math
from itertools import combinations, product

import pytest
import torch

from laconic.allocate.searches import (
    Effort,
    depth_effort,
    level_effort,
    search_depth,
    search_levels,
)
from laconic.calibrate.calibration import read_calibration
from laconic.calibrate.inputs import Subject
from laconic.errors import BudgetError, UnsupportedModel
from laconic.measure.losses import language_batches, measure_losses
from laconic.models.edits import drop, droppable
from laconic.models.memory import MemorySource
from laconic.quantize.rtn import RTN
from tests.models.test_edits import build
from tests.models.tiny import VOCABULARY

GRID = tuple(RTN(bits=bits, group="row") for bits in (2, 3, 4))
QUICK = Effort(4, 6, (2, 1), (12, 48))


def tokens(count, length=12):
    draw = torch.Generator().manual_seed(2)
    return torch.randint(4, VOCABULARY, (count, length), generator=draw)


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def source(model):
    return MemorySource(model)


@pytest.fixture(scope="module")
def calibration(model):
    return read_calibration(tokens(10), Subject(model, None), fitted=8, held_out=2)


@pytest.fixture(scope="module")
def found(source, calibration):
    return search_levels(source, GRID, calibration, bits=3, effort=QUICK)


class TestLevels:
    def test_every_layer_at_the_average(self, found, source):
        weights = {la.name: la.shape.numel() for b in source.blocks for la in b.layers}
        assert set(found.chosen) == set(weights) and set(found.chosen.values()) <= set(GRID)
        spent = sum(m.bits * weights[name] for name, m in found.chosen.items())
        assert spent == found.spent == 3 * sum(weights.values())

    def test_is_no_worse_than_uniform(self, found, source, calibration):
        """With all samples in the last stage the parent is only left for something better."""
        whole = Effort(4, 6, (2, 1), (12, 10**6))
        best = search_levels(source, GRID, calibration, bits=3, effort=whole)
        none = search_levels(source, GRID, calibration, bits=3, effort=Effort(0, 6, (1,), (12,)))
        assert set(none.chosen.values()) == {GRID[1]}
        assert best.loss <= none.loss and best.loss == best.evolution.fitness

    def test_losses_are_those_of_the_model(self, found, model, calibration):
        other = build("llama")
        for name, method in found.chosen.items():
            weight = other.get_parameter(f"{name}.weight")
            weight.data.copy_(method.compress_weight(weight.data).dense())
        for numbers, loss in ((range(8), found.loss), ((8, 9), found.held_out)):
            batches = language_batches(tokens(10)[list(numbers)], 1)
            for _, targets in batches:
                targets[:, -1] = 5  # any: the last position counts here as well
            losses = measure_losses(other, batches, reference=model)
            assert (losses.kl.sum() / losses.predictions.sum()).item() == pytest.approx(loss, 1e-4)

    def test_the_same_seed_and_a_folder_change_nothing(self, found, source, calibration, tmp_path):
        again = search_levels(source, GRID, calibration, bits=3, effort=QUICK)
        kept = search_levels(source, GRID, calibration, bits=3, effort=QUICK, folder=tmp_path)
        log = (tmp_path / "search.jsonl").read_bytes()
        (tmp_path / "search.jsonl").write_bytes(log[: len(log) // 2])
        resumed = search_levels(source, GRID, calibration, bits=3, effort=QUICK, folder=tmp_path)
        assert found == again == kept == resumed
        assert (tmp_path / "search.jsonl").read_bytes() == log
        assert len(list((tmp_path / "layers").iterdir())) == len(found.chosen)

    def test_the_source_is_not_changed(self, found, model):
        fresh = build("llama").state_dict()
        assert all(torch.equal(v, fresh[k]) for k, v in model.state_dict().items())

    def test_stored_bits_are_a_limit(self, source, calibration):
        grid = tuple(RTN(bits=bits) for bits in (2, 4, 8))
        found = search_levels(source, grid, calibration, bits=9, effort=QUICK, count="stored")
        sizes = 0
        for block in source.blocks:
            for layer in block.layers:
                weight = layer.take(source.read([layer.parameter]))
                sizes += 8 * found.chosen[layer.name].compress_weight(weight).stored_bytes
        weights = sum(la.shape.numel() for b in source.blocks for la in b.layers)
        assert sizes == found.spent <= 9 * weights

    def test_without_held_out_sequences(self, source, model):
        few = read_calibration(tokens(3), Subject(model, None), held_out=0)
        found = search_levels(source, GRID, few, bits=3, effort=Effort(1, 2, (1,), (12,)))
        assert found.held_out is None and "held out" not in found.note("x")

    def test_out_of_reach(self, source, calibration):
        with pytest.raises(BudgetError, match="cannot be met"):
            search_levels(source, GRID, calibration, bits=1.5, effort=QUICK)


class TestDepth:
    def test_finds_what_brute_force_finds(self, source, calibration):
        effort = Effort(6, 4, (2, 1), (24, 10**6))
        for unit, drop_count in (("block", 2), ("sublayer", 1)):
            found = search_depth(source, calibration, drop=drop_count, unit=unit, effort=effort)
            kinds = ("block",) if unit == "block" else ("attention", "mlp")
            assert len(found.chosen) == drop_count * len(kinds)
            assert found.loss == pytest.approx(self.best(calibration, unit, drop_count), rel=1e-5)

    @staticmethod
    def best(calibration, unit, count):
        """Least divergence over all choices, by dropping them from a model."""
        kinds = ("block",) if unit == "block" else ("attention", "mlp")
        model, dense = build("llama"), build("llama")
        groups = [[u.path for u in droppable(model) if u.kind == k] for k in kinds]
        batches = language_batches(tokens(10)[:8], 1)
        for _, targets in batches:
            targets[:, -1] = 5
        least = math.inf
        for choice in product(*(combinations(g, count) for g in groups)):
            undo = [drop(model, path) for path in sum(choice, ())]
            losses = measure_losses(model, batches, reference=dense)
            least = min(least, (losses.kl.sum() / losses.predictions.sum()).item())
            for back in reversed(undo):
                back()
        return least

    def test_paths_are_in_order_and_replay(self, source, calibration, model):
        found = search_depth(source, calibration, drop=2, effort=QUICK)
        order = [u.path for u in droppable(model)]
        assert list(found.chosen) == sorted(found.chosen, key=order.index)
        other = build("llama")
        for path in found.chosen:
            drop(other, path)
        batches = language_batches(tokens(10)[8:], 1)
        for _, targets in batches:
            targets[:, -1] = 5
        losses = measure_losses(other, batches, reference=model)
        kl = (losses.kl.sum() / losses.predictions.sum()).item()
        assert found.held_out == pytest.approx(kl, rel=1e-4)
        assert not hasattr(model.model.layers[0], "dropped") and len(model.model.layers) == 4

    def test_protected_ends(self, source, calibration):
        found = search_depth(source, calibration, drop=2, unit="block", protect=1, effort=QUICK)
        assert found.chosen == ("model.layers.1", "model.layers.2")
        with pytest.raises(BudgetError, match="2 can"):
            search_depth(source, calibration, drop=3, unit="block", protect=1, effort=QUICK)

    def test_the_log_goes_on(self, source, calibration, tmp_path):
        first = search_depth(source, calibration, drop=1, effort=QUICK, folder=tmp_path)
        again = search_depth(source, calibration, drop=1, effort=QUICK, folder=tmp_path)
        assert first == again == search_depth(source, calibration, drop=1, effort=QUICK)

    def test_other_architectures(self, calibration):
        plain = MemorySource(torch.nn.Sequential(torch.nn.Linear(2, 2)))
        with pytest.raises(UnsupportedModel):
            search_depth(plain, calibration, drop=1)


class TestEfforts:
    def test_are_the_papers(self):
        levels = level_effort()
        assert (levels.generations, levels.offspring) == (150, 128)
        assert levels.survivors == (16, 4, 1) and levels.tokens == (2048, 16384, 131072)
        depth = depth_effort(32, 8)
        assert (depth.generations, depth.offspring) == (128, 32)
        assert depth.survivors == (2, 1) and depth.tokens == (2048, 32768)

    def test_small_ones(self):
        assert level_effort(offspring=4, tokens=10).survivors == (1, 1, 1)
        assert level_effort(offspring=4, tokens=10).tokens == (1, 1, 10)
        assert depth_effort(4, 4, offspring=3, tokens=3).generations == 1
        assert depth_effort(4, 1, generations=9).generations == 9
