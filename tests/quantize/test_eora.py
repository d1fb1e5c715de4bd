import pytest
import torch

from laconic.compression import compress
from laconic.errors import UsageError
from laconic.loading import load
from laconic.probing import output_error
from laconic.prune.wanda import Wanda
from laconic.quantize.eora import EoRA
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense, IntQuantizer, LowRank, Sum
from laconic.tensors.stored import Record
from laconic.tensors.transforms import ChannelScale
from tests.calibrate.test_calibrated import data
from tests.contracts.data import stats_for


@pytest.fixture
def weight():
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0))


def compensated(method, weight, record=None):
    stats = stats_for(method, weight, 400)
    record = record or Record(IntQuantizer(3, "row").quantize(weight))
    return method.revise(weight, record, stats), stats


def test_no_factors_of_the_rank_give_back_more(weight):
    record, stats = compensated(EoRA(8, damp=0.0), weight)
    base, factors = record.weight.parts
    ours = output_error(weight, record.weight, stats)
    lost = weight - base.dense()
    u, s, vh = torch.linalg.svd(lost)
    plain = LowRank(Dense(u[:, :8] * s[:8]), Dense(vh[:8].contiguous()))
    assert ours < output_error(weight, Sum((base, plain)), stats)
    assert factors.rank == 8
    for _ in range(5):  # nor does any step away from them
        other = LowRank(
            Dense(factors.left.value + 0.01 * torch.randn(48, 8)),
            Dense(factors.right.value + 0.01 * torch.randn(8, 64)),
        )
        assert ours < output_error(weight, Sum((base, other)), stats)


def test_more_rank_gives_back_more(weight):
    errors = []
    for rank in (1, 4, 16, 48):
        record, stats = compensated(EoRA(rank), weight)
        errors.append(output_error(weight, record.weight, stats))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6


@pytest.mark.parametrize("bits", [8, 4])
def test_factors_on_grids(weight, bits):
    record, stats = compensated(EoRA(16, bits), weight)
    base, factors = record.weight.parts
    assert (factors.left.bits, factors.right.bits) == (bits, bits)
    dense, _ = compensated(EoRA(16), weight)
    none, full, ours = (
        output_error(weight, value, stats) for value in (base, dense.weight, record.weight)
    )
    assert full < ours < full + 0.5 * (none - full)


def test_behind_a_transform(weight):
    scale = ChannelScale(torch.rand(64) + 0.5)
    inner = IntQuantizer(3, "row").quantize(scale.fold(weight))
    record, _ = compensated(EoRA(48), weight, Record(inner, scale))
    assert record.transform is scale
    assert torch.allclose(scale.unfold(record.weight.dense()), weight, atol=1e-2)


def test_small_sides_have_their_own_rank(weight):
    record, stats = compensated(EoRA(32), weight[:4])
    assert record.weight.parts[1].rank == 4 and any("rank 4" in note for note in stats.notes)


def test_kernels():
    weight = torch.randn(8, 4, 3, 3)
    record, stats = compensated(EoRA(4), weight)
    assert record.weight.shape == weight.shape
    assert output_error(weight, record.weight, stats) < output_error(
        weight, record.weight.parts[0], stats
    )


def test_nothing_before_it(weight):
    with pytest.raises(UsageError, match="behind it in a recipe"):
        compensated(EoRA(), weight, Record(Dense(weight)))


@pytest.mark.parametrize("first", [RTN(3), Wanda(pattern="2:4")], ids=["grid", "zeros"])
def test_in_a_chain(tiny_models, tmp_path, first):
    alone = compress(tiny_models["llama"], first, data("llama"), out=tmp_path / "a").report
    both = compress(
        tiny_models["llama"], [first, EoRA(4)], data("llama"), out=tmp_path / "b"
    ).report
    assert sum(la["error"] for la in both.layers if la["error"]) > 0
    assert both.stored_bytes > alone.stored_bytes and "rank 4" in both.layers[0]["format"]
    load(tmp_path / "b")


@pytest.mark.parametrize("settings", [{"rank": 0}, {"bits": 5}, {"damp": -1.0}])
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        EoRA(**settings)
