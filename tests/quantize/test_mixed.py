import pytest

from laconic.allocate.knapsack import knapsack
from laconic.calibrate.calibration import Calibration
from laconic.compression import compress
from laconic.errors import UsageError
from laconic.loading import load
from laconic.method import LayerMethod
from laconic.models.open import open_source
from laconic.probing import measure_options, resident_bytes
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.mixed import Mixed
from laconic.registry import ENTRIES, Kind
from laconic.spelling import build, spell
from tests.calibrate.test_calibrated import data
from tests.contracts.cases import METHODS

SMALL = "gptq gptvq:dim=2,overhead=1.0,iterations=3 fp"


@pytest.mark.parametrize(
    "name, settings", [(n, s) for n, found in METHODS.items() for s in found], ids=str
)
def test_spelling_comes_back(name, settings):
    method = ENTRIES[name].load()(**settings)
    assert build(spell(method)) == method


def test_options_are_all_strengths():
    found = Mixed("gptq ecgptq").options()
    assert len(found) == len(GPTQ().options()) + len(ECGPTQ().options())
    assert all(isinstance(build(option.chosen), LayerMethod) for option in found)


def test_between_only_within_a_method():
    options = Mixed("ecgptq gptq").options()
    assert build(options[0].between(options[1], 0.5).chosen).bits == pytest.approx(0.625)
    last = len(ECGPTQ().options())
    assert options[last - 1].between(options[last], 0.5) is None


@pytest.mark.parametrize("budget", ["3.5bit resident", "4bit", "60%"])
def test_budgets(tiny_models, tmp_path, budget):
    report = compress(
        tiny_models["llama"], Mixed(SMALL), data("llama"), out=tmp_path / "o", budget=budget
    ).report
    formats = {row["format"] for row in report.layers}
    assert len(formats) > 1
    if budget.endswith("resident"):
        assert report.resident_bits_per_weight <= 3.5
    elif budget.endswith("bit"):
        assert report.bits_per_weight <= 4
    load(tmp_path / "o")


def test_loses_no_more_than_one_of_its_formats(tiny_models):
    source = open_source(tiny_models["llama"])
    rows = data("llama")
    calibration = Calibration(
        tuple(rows), None, range(len(rows) - 2), range(len(rows) - 2, len(rows))
    )
    mixed, alone = (
        measure_options(source, method, calibration=calibration, size=resident_bytes)
        for method in (Mixed(SMALL), GPTQ())
    )
    for bits in (2.5, 3.5, 4.5):
        target = bits * mixed.weights / 8
        totals = [
            t.error[range(len(t.layers)), knapsack(t.cost, t.error, target)].sum()
            for t in (mixed, alone)
        ]
        assert totals[0] <= totals[1] * (1 + 1e-9)


def test_without_a_budget(tiny_models, tmp_path):
    with pytest.raises(UsageError, match="give --budget"):
        compress(tiny_models["llama"], Mixed(), data("llama"), out=tmp_path / "o")


@pytest.mark.parametrize(
    "formats, match",
    [("", "no method"), ("evopress", "one layer"), ("hadamard", "in a recipe"), ("gptqq", "did you mean"), ("mixed", "one layer")],
)  # fmt: skip
def test_formats_that_cannot_be(formats, match):
    with pytest.raises(UsageError, match=match):
        Mixed(formats)


def test_every_layer_method_may_be_named():
    for name, entry in ENTRIES.items():
        cls = entry.load() if entry.kind is Kind.METHOD else None
        if (
            cls is not None
            and issubclass(cls, LayerMethod)
            and not cls.changes_inputs
            and cls is not Mixed
        ):
            assert Mixed(name).options()
