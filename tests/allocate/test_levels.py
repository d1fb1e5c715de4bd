import numpy as np
import pytest
import torch

from laconic.allocate.fitness import LiveModel
from laconic.allocate.levels import Database, LevelSpace, by_layer
from laconic.allocate.options import Options
from laconic.calibrate.calibration import read_calibration
from laconic.calibrate.inputs import Subject
from laconic.calibrate.statistics import SecondMoment
from laconic.errors import BudgetError, CorruptFile, DataError, UsageError
from laconic.models.memory import MemorySource
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense
from laconic.tensors.stored import Record, encode
from laconic.tensors.transforms import ChannelScale
from tests.models.tiny import TINY, VOCABULARY

GRID = tuple(RTN(bits=bits, group="row") for bits in (2, 3, 4))


def source(name="llama"):
    return MemorySource(TINY[name].model())


@pytest.fixture(scope="module")
def made():
    return Database(source(), GRID)


def space_of(live, database, bits, count="codes", **more):
    table = database.options(count, GRID)
    weights = sum(database.weights.values())
    return LevelSpace(
        live, table, lambda name, choice: database.record(name, choice[0]),
        bits=bits, weights=weights, exact=count == "codes", **more,
    )  # fmt: skip


class Scaled:
    """A strength that wants statistics and puts a scale before the layer."""

    wants = (SecondMoment(),)

    def settings(self):
        return {}

    def revise(self, weight, record, stats):
        scale = ChannelScale(stats.mean(SecondMoment()).diagonal().sqrt().float().clamp(min=1e-3))
        return Record(RTN(4).compress_weight(scale.fold(weight.float())), scale)


class TestDatabase:
    def test_holds_every_layer_at_every_strength(self, made):
        live = LiveModel(source())
        assert list(made.entries) == list(live.layers)
        for name in live.layers:
            weight = live.weight(name)
            for number, strength in enumerate(GRID):
                record, entry = made.record(name, number), made.entries[name][number]
                assert encode(record) == encode(Record(strength.compress_weight(weight)))
                assert entry.bits["codes"] == strength.bits * weight.numel()
                assert entry.bits["stored"] == 8 * len(encode(record))
                assert entry.bits["resident"] == 8 * record.weight.resident_bytes
                lost = (weight.float() - record.weight.dense(torch.float32)).square().sum()
                expected = (lost / weight.float().square().sum()).item()
                assert entry.error == pytest.approx(expected, rel=1e-4)

    def test_experts_are_layers(self):
        made = Database(source("qwen3_moe"), GRID[:1])
        assert len(made.entries) == 2 * TINY["qwen3_moe"].layers

    def test_statistics_are_of_the_dense_model(self):
        model = source()
        windows = torch.randint(4, VOCABULARY, (6, 12))
        calibration = read_calibration(windows, Subject(model.skeleton, None))
        both = Database(model, [Scaled(), GRID[0]], calibration=calibration)
        (name, *_, last) = both.entries
        record = both.record(last, 0)
        assert record.transform is not None
        resident = record.weight.resident_bytes + record.transform.resident_bytes
        assert both.entries[last][0].bits["resident"] == 8 * resident
        assert both.entries[name][0].error < both.entries[name][1].error
        with pytest.raises(DataError, match="needs calibration data"):
            Database(model, [Scaled()])

    def test_nothing_to_choose_from(self):
        with pytest.raises(UsageError, match="no strengths"):
            Database(source(), [])


class TestFiles:
    def test_hold_the_same(self, made, tmp_path):
        kept = Database(source(), GRID, folder=tmp_path / "deep" / "layers")
        files = sorted(p.name for p in (tmp_path / "deep" / "layers").iterdir())
        assert files == sorted(f"{name}.safetensors" for name in made.entries)
        assert kept.entries == made.entries and kept.weights == made.weights
        for name in made.entries:
            for number in range(len(GRID)):
                assert encode(kept.record(name, number)) == encode(made.record(name, number))

    def test_are_not_made_again(self, tmp_path, monkeypatch):
        first = Database(source(), GRID, folder=tmp_path)
        (gone, *_) = first.entries
        (tmp_path / f"{gone}.safetensors").unlink()
        calls = []
        original = RTN.revise
        monkeypatch.setattr(
            RTN, "revise", lambda self, *a: calls.append(self) or original(self, *a)
        )
        again = Database(source(), GRID, folder=tmp_path)
        assert again.entries == first.entries and len(calls) == len(GRID)

    @pytest.mark.parametrize("what", ["strengths", "weights"])
    def test_of_something_else_are_made_again(self, tmp_path, what):
        Database(source(), GRID, folder=tmp_path)
        other = MemorySource(TINY["llama"].model(seed=5)) if what == "weights" else source()
        strengths = GRID if what == "weights" else GRID[::-1]
        kept = Database(other, strengths, folder=tmp_path)
        fresh = Database(other, strengths)
        assert kept.entries == fresh.entries
        name = next(iter(fresh.entries))
        assert encode(kept.record(name, 0)) == encode(fresh.record(name, 0))

    def test_damaged(self, tmp_path):
        kept = Database(source(), GRID, folder=tmp_path)
        name = next(iter(kept.entries))
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(CorruptFile, match="safetensors"):
            kept.record(name, 0)
        with pytest.raises(CorruptFile, match="remove it"):
            Database(source(), GRID, folder=tmp_path)
        path.unlink()
        with pytest.raises(CorruptFile, match="safetensors"):
            kept.record(name, 0)


class TestTable:
    def test_costs_and_errors(self, made):
        table = made.options("codes", GRID)
        (name, *_) = table.items
        weights = made.weights[name]
        assert table.cost[0].tolist() == [2 * weights, 3 * weights, 4 * weights]
        assert table.error[0, 1] == made.entries[name][1].error * weights
        assert table.choices[0] == tuple(enumerate(GRID))

    def test_what_is_not_worth_it_goes(self):
        grid = [RTN(4, "row"), RTN(4, 16), RTN(2, "row")]
        table = Database(source(), grid).options("codes", grid)
        assert {len(c) for c in table.choices} == {2}  # at equal codes groups lose less
        assert [number for number, _ in table.choices[0]] == [2, 1]

    def test_no_codes(self):
        class Whole(Scaled):
            wants = ()

            def revise(self, weight, record, stats):
                return Record(Dense(weight))

        made = Database(source(), [Whole()])
        with pytest.raises(UsageError, match="no plain codes; count stored or resident"):
            made.options("codes", [Whole()])
        assert made.options("stored", [Whole()]).cost.shape == (14, 1)


class TestLevelSpace:
    def test_begins_with_uniform_levels(self, made):
        space = space_of(LiveModel(source()), made, 3)
        rng = np.random.default_rng(0)
        state = space.initial(rng)
        assert state == (1,) * 14
        assert set(by_layer(space.choices(state)).values()) == {GRID[1]}
        for _ in range(50):
            state = space.mutate(rng, state)
            assert space.spent(state) == 3 * sum(made.weights.values())

    def test_an_average_between(self, made):
        weights = sum(made.weights.values())
        space = space_of(LiveModel(source()), made, 2.71)
        state = space.initial(np.random.default_rng(0))
        assert 2.6 * weights < space.spent(state) <= 2.71 * weights
        assert len(set(state)) > 1

    @pytest.mark.parametrize("count", ["stored", "resident"])
    def test_real_sizes_are_a_limit(self, made, count):
        space = space_of(LiveModel(source()), made, 9.0, count)
        rng = np.random.default_rng(0)
        state = space.initial(rng)
        for _ in range(30):
            state = space.mutate(rng, state)
            assert space.spent(state) <= 9 * sum(made.weights.values())

    @pytest.mark.parametrize("bits", [1.9, 4.1])
    def test_out_of_reach(self, made, bits):
        if bits > 4:
            space = space_of(LiveModel(source()), made, bits)
            assert space.initial(np.random.default_rng(0)) == (2,) * 14
            return
        with pytest.raises(BudgetError, match="cannot be met"):
            space_of(LiveModel(source()), made, bits)

    def test_swaps_what_differs_and_nothing_else(self, made):
        live = LiveModel(source())
        space = space_of(live, made, 3)
        installed = []
        original = live.install
        live.install = lambda name, record: installed.append(name) or original(name, record)
        space.apply((1,) * 14)
        assert len(installed) == 14
        installed.clear()
        space.apply((1, 2, 0, *(1,) * 11))
        assert installed == list(live.layers)[1:3]
        inputs = TINY["llama"].inputs()
        with torch.no_grad():
            swapped = live.module(**inputs).logits
            fresh = LiveModel(source())
            for i, name in enumerate(fresh.layers):
                fresh.install(name, made.record(name, (1, 2, 0, *(1,) * 11)[i]))
            assert torch.equal(swapped, fresh.module(**inputs).logits)
            space.restore()
            assert torch.equal(
                live.module(**inputs).logits, LiveModel(source()).module(**inputs).logits
            )

    def test_one_option_each(self):
        live = LiveModel(source())
        table = Options.of({name: [(8.0, 0.0, (0, GRID[0]))] for name in live.layers})
        space = LevelSpace(live, table, lambda n, c: None, bits=8, weights=14, exact=True)
        assert space.initial(np.random.default_rng(0)) == (0,) * 14
