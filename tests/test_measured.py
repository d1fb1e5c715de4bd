import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import laconic.budgeting
from laconic.calibrate.library import StatisticsLibrary
from laconic.compression import compress
from laconic.errors import CorruptFile, UsageError
from laconic.measured import MeasuredTables
from laconic.planning import OptionTable
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from tests.calibrate.test_calibrated import data

OPTIONS = [(RTN(2),), (RTN(4),), (RTN(8),)]


def numbers(shape):
    return arrays(float, shape, elements=st.floats(0, 1e300))


@given(numbers((2, 3)), numbers((2, 3)), st.none() | numbers(2), st.text(max_size=9))
def test_what_is_kept_comes_back(tmp_path_factory, cost, error, importance, name):
    tables = MeasuredTables(tmp_path_factory.mktemp("m") / "new", ["model", None])
    table = OptionTable([name, "b"], OPTIONS, cost, error, 10**12, importance)
    assert tables.get("bytes", OPTIONS) is None
    tables.put("bytes", table)
    found = tables.get("bytes", OPTIONS)
    assert found.layers == table.layers and found.weights == table.weights
    assert np.array_equal(found.cost, cost) and np.array_equal(found.error, error)
    assert (found.importance is None) == (importance is None)
    assert importance is None or np.array_equal(found.importance, importance)


def test_of_something_else(tmp_path):
    table = OptionTable(["a"], OPTIONS, np.ones((1, 3)), np.ones((1, 3)), 1)
    MeasuredTables(tmp_path, ["model", 1]).put("bytes", table)
    assert MeasuredTables(tmp_path, ["model", 1]).get("bytes", OPTIONS)
    assert MeasuredTables(tmp_path, ["model", 2]).get("bytes", OPTIONS) is None
    assert MeasuredTables(tmp_path, ["model", 1]).get("memory", OPTIONS) is None
    other = [(RTN(2, 32),), *OPTIONS[1:]]
    assert MeasuredTables(tmp_path, ["model", 1]).get("bytes", other) is None


@pytest.mark.parametrize("damage", ["", "[]", '{"layers": ["a"]}', "cut", "narrow"])
def test_damaged(tmp_path, damage):
    tables = MeasuredTables(tmp_path, ["model"])
    tables.put("bytes", OptionTable(["a"], OPTIONS, np.ones((1, 3)), np.ones((1, 3)), 1))
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    cut = {"cut": text[: len(text) // 2], "narrow": text.replace("1.0, 1.0]", "1.0]", 1)}
    file.write_text(cut.get(damage, damage))
    with pytest.raises(CorruptFile, match="delete it"):
        tables.get("bytes", OPTIONS)


def test_the_next_budget_measures_nothing(tiny_models, tmp_path, monkeypatch):
    def run(out, budget, measured, **more):
        return compress(
            tiny_models["llama"], GPTQ(), data("llama", 15), budget=budget, out=tmp_path / out,
            measured=measured, **more,
        )  # fmt: skip

    folder = tmp_path / "tables"
    run("fresh", "5.2bit", None)
    run("other", "6.2bit", folder)
    tables = len([*folder.iterdir()])
    calls = []
    whole = laconic.budgeting.measure_options
    monkeypatch.setattr(
        "laconic.budgeting.measure_options", lambda *a, **k: calls.append(a) or whole(*a, **k)
    )
    run("kept", "5.2bit", folder)
    assert tables == 1 and not calls
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("fresh", "kept")]
    assert weights[0] == weights[1]
    run("memory", "7bit resident", folder)
    run("more", "5.2bit", folder, also=["embeddings"])
    assert len(calls) == 2 and len([*folder.iterdir()]) == 3


def test_what_cannot_be_kept(tiny_models, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        MeasuredTables(tmp_path / "file", [])
    with pytest.raises(UsageError, match="is a file"):
        StatisticsLibrary(tmp_path / "file", "key")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    with pytest.raises(UsageError, match="in memory"):
        compress(model, RTN(), budget="4bit", measured=tmp_path)
    with pytest.raises(UsageError, match="give a budget"):
        compress(tiny_models["llama"], RTN(), out=tmp_path / "o", measured=tmp_path)
