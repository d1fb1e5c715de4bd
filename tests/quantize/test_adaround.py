import pytest
import torch

from laconic.compression import compress
from laconic.errors import DataError, UsageError
from laconic.prune.sparsegpt import SparseGPT
from laconic.quantize.adaround import AdaRound
from laconic.quantize.rtn import RTN
from tests.calibrate.test_calibrated import data
from tests.prune.layers import layer, lost, stats_of


def alone(method, weight, x):
    return lost(weight, method.compress_weight(weight, stats_of(method, weight, x)), x)


@pytest.fixture(scope="module")
def case():
    return layer(rows=48, columns=96, positions=600)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", ["row", 32])
def test_loses_less_than_rounding_to_the_nearest_on_the_same_grid(case, bits, group):
    ours = alone(AdaRound(bits, group), *case)
    assert ours < 0.9 * alone(AdaRound(bits, group, steps=0), *case)
    same = AdaRound(bits, group, steps=0).compress_weight(case[0], stats_of(AdaRound(), *case))
    plain = RTN(bits, group, range="mse").compress_weight(case[0])
    assert torch.equal(same.dense(), plain.dense())


def test_percentiles_lose_no_more_than_extremes(case):
    plain, cut = (
        alone(AdaRound(3, "row", False, range_, steps=0), *case)
        for range_ in ("minmax", "percentile")
    )
    assert cut <= plain


def test_no_row_loses_more_than_rounded(case):
    weight, x = case
    learned, nearest = (
        AdaRound(3, "row", steps=n).compress_weight(weight, stats_of(AdaRound(), weight, x)).dense()
        for n in (30, 0)
    )
    off = [((v - weight) @ x.T).square().sum(dim=1) for v in (learned, nearest)]
    assert (off[0] <= off[1] * (1 + 1e-4)).all()


def test_zeros_of_a_chain_stay(tiny_models, tmp_path):
    chain = [SparseGPT(pattern="2:4"), AdaRound(bits=4, steps=20)]
    report = compress(tiny_models["llama"], chain, data("llama"), out=tmp_path / "o").report
    assert all("2:4" in row["format"] and "int4" in row["format"] for row in report.layers)


def test_masked_weights_are_not_learned(case):
    weight, x = case
    pruned = SparseGPT(pattern="2:4")
    value = pruned.compress_weight(weight, stats_of(pruned, weight, x))
    stats = stats_of(AdaRound(), weight, x)
    stats.mask = value.mask
    method = AdaRound(3, "row", symmetric=False, range="minmax")
    found = method.compress_weight(value.dense(), stats).dense()
    assert (found[~value.mask.dense()] == 0).all()


def test_needs_data():
    weight, x = layer(rows=4, columns=8)
    stats = stats_of(RTN(), weight, x)
    with pytest.raises(DataError, match="second moment"):
        AdaRound().compress_weight(weight, stats)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 9}, "bits"), ({"range": "l1"}, "range must be one of"), ({"steps": -1}, "steps"),
        ({"range": "percentile"}, "group must be 'row'"), ({"group": 0}, "group"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        AdaRound(**settings)
