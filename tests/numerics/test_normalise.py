import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.normalise import by_columns_and_rows


def test_columns_first_then_rows():
    weight = torch.randn(5, 7).double()
    found = by_columns_and_rows(weight)
    first = weight / weight.norm(dim=0)
    assert torch.allclose(found.columns[0], weight.norm(dim=0))
    assert torch.allclose(found.rows[:, 0], first.norm(dim=1))
    assert torch.allclose(found.values * found.rows * found.columns, weight)


def test_rows_may_be_of_any_size():
    weight = torch.randn(5, 7)
    scaled = weight.clone()
    scaled[:, 2] *= 10
    a, b = (by_columns_and_rows(w).values for w in (weight, scaled))
    assert torch.allclose(a, b)


def test_places_of_a_kernel_share_a_divisor():
    found = by_columns_and_rows(torch.randn(4, 12), run=3)
    runs = found.columns.reshape(4, 3)
    assert (runs == runs[:, :1]).all()


def test_zeros_stay():
    weight = torch.randn(3, 4)
    weight[:, 1], weight[2] = 0, 0
    found = by_columns_and_rows(weight)
    assert found.values.isfinite().all() and found.columns[0, 1] == 1 and found.rows[2] == 1


def test_what_cannot_be():
    with pytest.raises(UsageError, match="runs of 3"):
        by_columns_and_rows(torch.randn(2, 4), run=3)
    with pytest.raises(UsageError, match="a matrix"):
        by_columns_and_rows(torch.randn(4))
    with pytest.raises(BadWeights):
        by_columns_and_rows(torch.full((2, 2), torch.inf))
