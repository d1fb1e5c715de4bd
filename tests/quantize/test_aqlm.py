import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.probing import output_error
from laconic.quantize.aqlm import AQLM
from laconic.quantize.gptq import GPTQ
from tests.contracts.data import stats_for


@pytest.fixture
def weight():
    return torch.randn(256, 64, generator=torch.Generator().manual_seed(0))


def compressed(method, weight):
    stats = stats_for(method, weight, 400)
    value = method.compress_weight(weight, stats)
    return value, output_error(weight, value, stats)


def test_rounds_lose_less_and_less(weight):
    errors = [compressed(AQLM(1, 6, 4, rounds=n, tolerance=0.0), weight)[1] for n in (0, 1, 3, 6)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.8 * errors[0]


def test_more_codebooks_and_a_wider_beam_lose_less(weight):
    one, two = (compressed(AQLM(m, 4, 4, rounds=4), weight)[1] for m in (1, 2))
    assert two < one
    wide = compressed(AQLM(2, 4, 4, rounds=4, beam=4), weight)[1]
    assert wide < 1.02 * two


def test_loses_less_than_gptq_in_as_much_memory():
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    value, ours = compressed(AQLM(1, 7, 4, rounds=6), weight)
    swept, theirs = compressed(GPTQ(2, 64), weight)
    assert value.resident_bytes <= 1.1 * swept.resident_bytes and ours < theirs


@pytest.mark.parametrize("shape", [(8, 30), (6, 3, 3, 3), (1, 5)])
def test_rows_that_no_vector_fills(shape):
    weight = torch.randn(shape)
    value, error = compressed(AQLM(2, 4, 4, rounds=2), weight)
    assert value.shape == weight.shape and error < 0.3


def test_rows_of_zeros_stay_near_zero(weight):
    weight[3] = 0
    value, _ = compressed(AQLM(rounds=2), weight)
    assert value.dense()[3].abs().max() < 0.5 and value.dense().isfinite().all()


def test_the_same_twice(weight):
    a, b = (compressed(AQLM(rounds=2), weight)[0] for _ in range(2))
    assert torch.equal(a.packed, b.packed) and torch.equal(a.codebooks, b.codebooks)


@pytest.mark.parametrize(
    "settings",
    [
        {"codebooks": 0},
        {"bits": 13},
        {"length": 0},
        {"beam": 0},
        {"rounds": -1},
        {"tolerance": -1.0},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        AQLM(**settings)


def test_damaged_weights(weight):
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        compressed(AQLM(), weight)
