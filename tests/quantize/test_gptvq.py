import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.probing import output_error
from laconic.quantize.gptq import GPTQ
from laconic.quantize.gptvq import GPTVQ
from laconic.tensors.codebook import Codebook
from tests.contracts.data import stats_for


@pytest.fixture
def weight():
    return torch.randn(128, 96, generator=torch.Generator().manual_seed(0))


def compressed(method, weight, positions=400):
    stats = stats_for(method, weight, positions)
    value = method.compress_weight(weight, stats)
    return value, output_error(weight, value, stats)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_loses_less_than_gptq_in_as_much_memory(dim):
    weight = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    value, ours = compressed(GPTVQ(2, dim, overhead=0.25), weight)
    swept, theirs = compressed(GPTQ(2, 64), weight)
    assert value.resident_bytes <= 1.05 * swept.resident_bytes and ours < theirs


@pytest.mark.parametrize("change", ["update", "exact"])
def test_what_each_part_is_worth(weight, change):
    with_it, without = (GPTVQ(2, 4, **{change: on}) for on in (True, False))
    assert compressed(with_it, weight)[1] <= compressed(without, weight)[1]


@pytest.mark.parametrize("overhead", [0.125, 0.25, 1.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_codebooks_take_what_they_may(overhead, dim):
    weight = torch.randn(512, 512)
    method = GPTVQ(2, dim, overhead, update=False, iterations=1)
    value = method.compress_weight(weight, stats_for(method, weight))
    assert isinstance(value, Codebook)
    taken = 8 * (value.entries.nbytes + value.entry_scale.nbytes) / weight.numel()
    assert taken == pytest.approx(overhead, rel=0.07)  # groups are of whole rows and bands
    assert 8 * value.resident_bytes / weight.numel() == pytest.approx(2 + taken, rel=1e-3)


def test_columns_that_no_vector_fills():
    weight = torch.randn(24, 27)
    value, error = compressed(GPTVQ(3, 2), weight)
    assert value.shape == weight.shape and error < 0.05


def test_kernels_are_columns():
    weight = torch.randn(16, 3, 3, 3)
    assert compressed(GPTVQ(3, 1), weight)[0].shape == weight.shape


def test_scales_of_blocks_lie_on_sixteen_levels(weight):
    weight = weight * torch.logspace(-2, 1, 128)[:, None]
    value, error = compressed(GPTVQ(3, 2, scale_block=32), weight)
    assert value.scale.bits == 4 and value.scale.shape == (128, 3)
    assert error < compressed(GPTVQ(3, 2), weight)[1]


def test_inputs_that_were_always_zero():
    weight = torch.randn(64, 32)
    weight[:, 5] = 1000
    method = GPTVQ(3, 2)
    stats = stats_for(method, weight)
    (collected,) = stats.collected.values()
    collected.sums["moment"][5], collected.sums["moment"][:, 5] = 0, 0
    value = method.compress_weight(weight, stats)
    live = [j for j in range(32) if j not in (4, 5)]
    assert (value.dense() - weight)[:, live].abs().max() < 3


def test_the_same_twice(weight):
    a, b = (compressed(GPTVQ(), weight)[0] for _ in range(2))
    assert torch.equal(a.packed, b.packed) and torch.equal(a.entries, b.entries)


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 3}, {"bits": 0}, {"bits": 7, "dim": 2}, {"entries": "fp8"}, {"overhead": 0.0},
        {"scale_block": 3}, {"damp": 0.0}, {"iterations": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        GPTVQ(**settings)


def test_parts_of_bits(weight):
    errors = [compressed(GPTVQ(bits, 4), weight)[1] for bits in (1, 1.5, 2)]
    assert errors == sorted(errors, reverse=True)
    assert all(isinstance(o, GPTVQ) for o in GPTVQ(dim=4).options())
    with pytest.raises(UsageError, match="whole number in 1..12"):
        GPTVQ(1.3, 4)


def test_damaged_weights(weight):
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        compressed(GPTVQ(), weight)
