import pytest
import torch

from laconic.errors import UsageError
from laconic.tensors import StaticIntQuantizer


def test_the_range_does_not_move():
    quantizer = StaticIntQuantizer(8, -1.0, 3.0)
    x = torch.tensor([[-5.0, -1.0, 0.0, 1.5, 3.0, 9.0]])
    ends = quantizer.project(torch.full((2, 3), 100.0)), quantizer.project(torch.tensor([-100.0]))
    y = quantizer.project(x)
    assert y[0, 0] == ends[1] and (ends[0] == y[0, -1]).all()
    assert torch.allclose(y[0, 1:5], x[0, 1:5], atol=4 / 255)
    assert y[0, 2] == 0


def test_symmetric_ones_have_a_value_more_at_the_larger_end():
    quantizer = StaticIntQuantizer(4, -1.0, 7.0, symmetric=True)
    assert quantizer.project(torch.tensor([-9.0, 9.0, 3.2])).tolist() == [-6.125, 7, 3.5]


def test_what_is_not_finite_becomes_nan():
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    assert StaticIntQuantizer().project(x).isnan().tolist() == [False, True, True, True]
    assert StaticIntQuantizer().project(x.bfloat16()).dtype == torch.bfloat16


def test_one_value_is_rounded_as_among_others():
    x = torch.randn(9, 5)
    quantizer = StaticIntQuantizer(5, -2.0, 2.0)
    assert torch.equal(quantizer.project(x)[4:5], quantizer.project(x[4:5]))


@pytest.mark.parametrize(
    "settings, match", [
        ({"bits": 9}, "bits"), ({"low": 1.0}, "low must be below"),
        ({"high": float("inf")}, "low must be below"), ({"low": float("nan")}, "low must be below"),
    ],
)  # fmt: skip
def test_settings(settings, match):
    with pytest.raises(UsageError, match=match):
        StaticIntQuantizer(**settings)
