import pytest
import torch

from laconic.compression import compress
from laconic.errors import BadWeights, UsageError
from laconic.prune.sparsegpt import SparseGPT
from laconic.prune.wanda import Wanda
from laconic.quantize.gptq import GPTQ
from laconic.quantize.obr import OBR
from laconic.quantize.rtn import RTN
from laconic.tensors.masked import MaskedCodes
from tests.calibrate.test_calibrated import data
from tests.contracts.data import stats_for
from tests.prune.layers import layer, lost, stats_of


def alone(method, weight, x):
    return lost(weight, method.compress_weight(weight, stats_of(method, weight, x)), x)


def chained(first, second, weight, x):
    """The second on what the first left, with its zeros."""
    pruned = first.compress_weight(weight, stats_of(first, weight, x))
    stats = stats_of(second, weight, x)
    stats.mask = pruned.mask
    value = second.compress_weight(pruned.dense(), stats)
    return lost(weight, stats.masked(value), x)


@pytest.fixture(scope="module")
def case():
    return layer(rows=64, columns=96, positions=600)


@pytest.mark.parametrize("bits", [4, 3])
def test_loses_less_than_one_after_the_other(case, bits):
    ours = alone(OBR(bits), *case)
    row = {"group": "row", "range": "mse"}
    rivals = {
        "wanda, rtn": chained(Wanda(), RTN(bits, **row), *case),
        "wanda, gptq": chained(Wanda(), GPTQ(bits, "row"), *case),
        "sparsegpt, gptq": chained(SparseGPT(), GPTQ(bits, "row"), *case),
    }
    assert all(ours < theirs for theirs in rivals.values())
    assert rivals["wanda, gptq"] < rivals["wanda, rtn"]


def test_what_each_part_is_worth(case):
    whole = alone(OBR(3), *case)
    assert whole < alone(OBR(3, rescale=False), *case)
    assert whole < alone(OBR(3, tail="rtn"), *case)
    half = alone(OBR(3, alpha=0.5, order="natural"), *case)  # the paper's
    assert whole < half < alone(OBR(3, alpha=1.0), *case)


@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_zeros_are_exact_and_only_kept_codes_are_stored(case, pattern):
    weight, x = case
    value = OBR(pattern=pattern).compress_weight(weight, stats_of(OBR(), weight, x))
    assert isinstance(value, MaskedCodes)
    keep = value.mask.dense()
    assert (value.dense()[~keep] == 0).all()
    assert (keep.sum(dim=1) == 48).all()
    assert 8 * value.packed.nbytes == 4 * keep.sum()
    if pattern == "2:4":
        assert (keep.reshape(64, -1, 4).sum(dim=2) == 2).all()


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_splits_that_no_block_ends_at(case, alpha):
    assert alone(OBR(alpha=alpha), *case) < 0.2


def test_zeros_of_a_chain_stay(tiny_models, tmp_path):
    chain = [SparseGPT(pattern="2:4"), OBR(bits=4)]
    report = compress(tiny_models["llama"], chain, data("llama"), out=tmp_path / "o").report
    assert all("2:4" in row["format"] and "int4" in row["format"] for row in report.layers)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"tail": "x"},
        {"order": "x"},
        {"pattern": "layer"},
        {"sparsity": 1.0},
        {"bits": 1},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        OBR(**settings)


def test_damaged_weights():
    weight = torch.full((4, 8), torch.inf)
    with pytest.raises(BadWeights):
        OBR().compress_weight(weight, stats_for(OBR(), weight))
