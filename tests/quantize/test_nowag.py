import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.probing import output_error
from laconic.quantize.nowag import NoWagVQ
from tests.contracts.data import stats_for


@pytest.fixture
def weight():
    sizes = torch.logspace(-1, 1, 64)[
        torch.randperm(64, generator=torch.Generator().manual_seed(1))
    ]
    return torch.randn(192, 64, generator=torch.Generator().manual_seed(0)) * sizes


def compressed(method, weight):
    stats = stats_for(method, weight, 400)
    value = method.compress_weight(weight, stats)
    return value, output_error(weight, value, stats_for(GPTQ_WANTS, weight, 400))


class GPTQ_WANTS:
    from laconic.calibrate.statistics import SecondMoment

    wants = (SecondMoment(),)


def test_lengths_of_rows_matter():
    weight = torch.randn(192, 64, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-1, 1, 192)[:, None]
    with_them, without = (
        compressed(NoWagVQ(2, 2, normalise=on), weight)[1] for on in (True, False)
    )
    assert with_them < 0.7 * without


def test_the_codebook_takes_little(weight):
    large = torch.randn(1024, 512)
    method = NoWagVQ(2, iterations=1)
    value = method.compress_weight(large, stats_for(method, large)).inner
    assert value.entries.nbytes * 8 <= 0.05 * 2 * large.numel() and value.dim == 4
    small = method.compress_weight(weight[:4, :8], stats_for(method, weight[:4, :8])).inner
    assert small.dim == 1


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 30), (16, 3, 3, 3)])
def test_shapes(dim, shape):
    value, error = compressed(NoWagVQ(2, dim), torch.randn(shape))
    assert value.shape == shape and error < 0.4


def test_more_bits_lose_less(weight):
    errors = [compressed(method, weight)[1] for method in NoWagVQ(dim=2).options()]
    assert errors == sorted(errors, reverse=True) and len(errors) == 6


def test_columns_of_zeros(weight):
    weight[:, 3] = 0
    value, _ = compressed(NoWagVQ(3, 1), weight)
    assert value.dense().isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"dim": 5}, {"bits": 1.3, "dim": 2}, {"bits": 0}, {"iterations": -1}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        NoWagVQ(**settings)


def test_damaged_weights(weight):
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        NoWagVQ().compress_weight(weight, stats_for(NoWagVQ(), weight))
