import pytest
import torch

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.library import INDEX, StatisticsLibrary
from laconic.calibrate.statistics import Collected, InputNorm, Observation, SecondMoment
from laconic.errors import CorruptFile, UsageError
from laconic.models.layout import Layer

LAYERS = [Layer(name, name, "weight", torch.Size((5, 4)), "linear") for name in "ab"]
WANTS = (SecondMoment(), InputNorm())


def stats(shared=True):
    """Of two layers, which saw the same inputs or others."""
    sums = [[Collected(want) for want in WANTS] for _ in LAYERS]
    for number, row in enumerate(sums):
        for found in row:
            found.update(Observation(torch.randn(7 + number, 4), torch.randn(7 + number, 5)))
    sums = [sums[0], sums[0]] if shared else sums
    return {
        layer.name: LayerStats(layer, dict(zip(WANTS, row))) for layer, row in zip(LAYERS, sums)
    }


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_put_comes_back(tmp_path, shared):
    library, given = StatisticsLibrary(tmp_path / "new", "k"), stats(shared)
    library.put("blocks.0", given)
    found = StatisticsLibrary(tmp_path / "new", "k").get("blocks.0", LAYERS, WANTS)
    for name in "ab":
        for want in WANTS:
            one, other = found[name].collected[want], given[name].collected[want]
            assert one.count == other.count and one.sums.keys() == other.sums.keys()
            assert all(torch.equal(one.sums[key], other.sums[key]) for key in one.sums)
    same = found["a"].collected[WANTS[0]] is found["b"].collected[WANTS[0]]
    assert same == shared  # kept once in memory, as in the file


def test_equal_inputs_are_kept_once(tmp_path):
    sizes = []
    for shared in (True, False):
        library = StatisticsLibrary(tmp_path / str(shared), "k")
        library.put("", stats(shared))
        sizes.append((tmp_path / str(shared) / "model.safetensors").stat().st_size)
    assert sizes[0] < sizes[1]


def test_nothing_that_reached_a_layer(tmp_path):
    library = StatisticsLibrary(tmp_path, "k")
    library.put("x", {"a": LayerStats(LAYERS[0], {WANTS[0]: Collected(WANTS[0])})})
    found = library.get("x", LAYERS[:1], WANTS[:1])["a"].collected[WANTS[0]]
    assert (found.count, found.sums) == (0, None)


def test_what_is_not_there(tmp_path):
    library = StatisticsLibrary(tmp_path, "k")
    assert library.get("x", LAYERS, WANTS) is None and not library.has_all(["x"])
    given = stats()
    library.put("x", {"a": LayerStats(LAYERS[0], {WANTS[0]: given["a"].collected[WANTS[0]]})})
    assert library.get("x", LAYERS[:1], WANTS[:1]) is not None
    assert library.get("x", LAYERS, WANTS[:1]) is None
    assert library.get("x", LAYERS[:1], WANTS) is None
    assert library.has_all(["x"]) and not library.has_all(["x", "y"])


@pytest.mark.parametrize("content", ["{", "[]", "{}", "3"])
def test_an_index_that_cannot_be_read(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CorruptFile, match="statistics.json: cannot be read"):
        StatisticsLibrary(tmp_path, "k")


def test_of_another_model(tmp_path):
    StatisticsLibrary(tmp_path, "k").put("x", stats())
    with pytest.raises(UsageError, match="of another model or of other data"):
        StatisticsLibrary(tmp_path, "other")


def test_a_damaged_file(tmp_path):
    library = StatisticsLibrary(tmp_path, "k")
    library.put("x", stats())
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CorruptFile):
        library.get("x", LAYERS, WANTS)
