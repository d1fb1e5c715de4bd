import pytest
import torch

from laconic.allocate.evopress import EvoPress, EvoPressDepth
from laconic.calibrate.calibration import read_calibration
from laconic.calibrate.inputs import Subject
from laconic.errors import BudgetError, DataError, UsageError
from laconic.models.edits import apply_edits
from laconic.models.memory import MemorySource
from laconic.quantize.rtn import RTN
from tests.models.test_edits import build
from tests.models.tiny import VOCABULARY

QUICK = {"generations": 2, "offspring": 4, "tokens": 48}


@pytest.fixture(scope="module")
def source():
    return MemorySource(build("qwen3"))


@pytest.fixture(scope="module")
def calibration(source):
    draw = torch.Generator().manual_seed(2)
    windows = torch.randint(4, VOCABULARY, (6, 12), generator=draw)
    return read_calibration(windows, Subject(source.skeleton, None), fitted=5, held_out=1)


class TestLevels:
    def test_plans_a_method_for_every_layer(self, source, calibration):
        plan = EvoPress(bits=4, **QUICK).plan(source, calibration)
        weights = {la.name: la.shape.numel() for b in source.blocks for la in b.layers}
        assert set(plan.methods) == set(weights) and not plan.edits
        assert all(isinstance(m, RTN) for m in plan.methods.values())
        assert sum(m.bits * weights[n] for n, m in plan.methods.items()) == 4 * sum(
            weights.values()
        )
        (note,) = plan.notes
        assert (
            note.startswith("evopress at 4 bits: KL from the dense answers") and "held out" in note
        )

    def test_strengths_with_settings(self):
        strengths = EvoPress(method="rtn:range=minmax").strengths()
        assert strengths == RTN(range="minmax").options()
        assert EvoPress().strengths() == RTN().options()

    def test_keeps_a_folder(self, source, calibration, tmp_path):
        method = EvoPress(bits=4, folder=str(tmp_path), **QUICK)
        assert method.plan(source, calibration) == method.plan(source, calibration)
        assert (tmp_path / "search.jsonl").is_file()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"bits": 0}, "bits must be above 0"),
            ({"count": "bytes"}, "count must be one of"),
            ({"generations": -1}, "0 or more"),
            ({"offspring": 0}, "1 or more"),
            ({"tokens": 0}, "1 or more"),
            ({"seed": -1}, "0 or more"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(UsageError, match=message):
            EvoPress(**settings)

    def test_methods_without_strengths(self):
        with pytest.raises(UsageError, match="unknown method 'rtm'; did you mean 'rtn'"):
            EvoPress(method="rtm").strengths()
        with pytest.raises(UsageError, match="has no setting 'bit'"):
            EvoPress(method="rtn:bit=3").strengths()
        with pytest.raises(UsageError, match="evopress has no strengths to choose from"):
            EvoPress(method="evopress").strengths()

    def test_no_data(self, source):
        for method in (EvoPress(), EvoPressDepth()):
            with pytest.raises(DataError, match="give --data"):
                method.plan(source, None)


class TestDepth:
    @pytest.mark.parametrize(("unit", "count"), [("sublayer", 4), ("block", 2)])
    def test_plans_edits(self, source, calibration, unit, count):
        plan = EvoPressDepth(remove=0.5, unit=unit, **QUICK).plan(source, calibration)
        assert len(plan.edits) == count and not plan.methods
        assert plan.edits[0]["module"] in plan.notes[0]
        what = "2 of 4 blocks" if unit == "block" else "2 of 4 attentions and 2 of 4 MLPs"
        assert f"drops {what}: " in plan.notes[0]
        apply_edits(build("qwen3"), plan.edits)

    @pytest.mark.parametrize(("remove", "count"), [(0.375, 1), (0.38, 2), (0.625, 2)])
    def test_halves_are_rounded_down(self, source, calibration, remove, count):
        method = EvoPressDepth(remove=remove, unit="block", **(QUICK | {"generations": 1}))
        assert len(method.plan(source, calibration).edits) == count

    @pytest.mark.parametrize("remove", [0.1, 0.9])
    def test_nothing_or_all(self, source, calibration, remove):
        with pytest.raises(BudgetError, match="nothing or all"):
            EvoPressDepth(remove=remove).plan(source, calibration)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"remove": 0}, "remove must be above 0"),
            ({"remove": 1}, "remove must be above 0"),
            ({"unit": "head"}, "unit must be"),
            ({"protect": -1}, "protect must be"),
            ({"offspring": 0}, "1 or more"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(UsageError, match=message):
            EvoPressDepth(**settings)
