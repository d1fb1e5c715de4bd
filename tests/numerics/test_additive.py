import itertools

import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.additive import additive_values, beam_search, residual_kmeans


def problem(rows=5, columns=12, length=4, books=2, entries=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(60, columns, generator=generator) @ (
        torch.eye(columns) + 0.5 * torch.randn(columns, columns, generator=generator)
    )
    scale = torch.rand(rows, generator=generator) + 0.5
    tables = torch.randn(books, entries, length, generator=generator) / 2
    codes = torch.randint(entries, (rows, columns // length, books), generator=generator)
    return weight, (x.T @ x / 60).double(), codes, tables, scale


def losses(weight, moment, codes, tables, scale):
    off = (weight - additive_values(codes, tables, scale)).double()
    return (off @ moment * off).sum(dim=1)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("books", [1, 2, 3])
def test_loses_what_it_says_and_no_more_than_before(beam, books):
    weight, moment, codes, tables, scale = problem(books=books)
    for number in range(4):
        before = losses(weight, moment, codes, tables, scale)
        codes, found = beam_search(weight, moment, codes, tables, scale, beam=beam, seed=number)
        after = losses(weight, moment, codes, tables, scale)
        assert torch.allclose(found.double(), after, rtol=1e-4)
        assert (after <= before * (1 + 1e-5)).all()


def test_one_group_with_a_beam_as_wide_as_a_codebook_is_searched_completely():
    weight, moment, codes, tables, scale = problem(columns=4, entries=8)
    found, loss = beam_search(weight, moment, codes, tables, scale, beam=8)
    best = torch.full((5,), torch.inf, dtype=torch.float64)
    for pair in itertools.product(range(8), repeat=2):
        each = torch.tensor(pair).expand(5, 1, 2)
        best = torch.minimum(best, losses(weight, moment, each, tables, scale))
    # the second book is searched for each of the 8 best of the first, given the start of the second
    assert (loss.double() <= 1.05 * best).all()
    assert torch.allclose(losses(weight, moment, found, tables, scale), loss.double(), rtol=1e-4)


def test_a_wider_beam_loses_less_over_many_rows():
    weight, moment, codes, tables, scale = problem(rows=64, columns=32, entries=16)
    totals = [
        float(beam_search(weight, moment, codes, tables, scale, beam=b)[1].sum()) for b in (1, 4)
    ]
    assert totals[1] < totals[0]


def test_rows_do_not_depend_on_each_other():
    weight, moment, codes, tables, scale = problem(rows=300)
    whole, _ = beam_search(weight, moment, codes, tables, scale)
    part, _ = beam_search(weight[130:140], moment, codes[130:140], tables, scale[130:140])
    assert torch.equal(whole[130:140], part)


def test_residuals_fall_with_each_codebook():
    vectors = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    errors = []
    for books in (1, 2, 3):
        tables, codes = residual_kmeans(vectors, books, 8)
        values = sum(tables[m][codes[:, m]] for m in range(books))
        errors.append(float((vectors - values).square().sum()))
    assert errors[0] > errors[1] > errors[2]


def test_no_rows():
    weight, moment, codes, tables, scale = problem()
    found, loss = beam_search(weight[:0], moment, codes[:0], tables, scale[:0])
    assert found.shape == (0, 3, 2) and loss.shape == (0,)


@pytest.mark.parametrize(
    "change",
    [{"beam": 0}, {"scale": torch.ones(4)}, {"moment": torch.eye(11)}, {"codes": torch.zeros(5, 2, 2).long()}],
)  # fmt: skip
def test_what_does_not_fit(change):
    weight, moment, codes, tables, scale = problem()
    given = {
        "weight": weight,
        "moment": moment,
        "codes": codes,
        "codebooks": tables,
        "scale": scale,
    }
    with pytest.raises(UsageError):
        beam_search(**given | change)


def test_damaged_values():
    weight, moment, codes, tables, scale = problem()
    tables[0, 0, 0] = torch.inf
    with pytest.raises(BadWeights):
        beam_search(weight, moment, codes, tables, scale)
