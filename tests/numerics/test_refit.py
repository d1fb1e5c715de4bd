import itertools

import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.refit import refit_tables


def made_of(tables, index, columns, scale):
    values = tables[index].sum(dim=2).reshape(len(index), -1)[:, :columns]
    return values * scale


def loss(weight, values, moment):
    off = weight.double() - values
    return float((off @ moment * off).sum())


def problem(rows=6, columns=12, dim=2, books=1, entries=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(40, columns, generator=generator, dtype=torch.float64)
    vectors = -(-columns // dim)
    index = torch.randint(entries, (rows, vectors, books), generator=generator)
    index = index + torch.arange(books) * entries
    tables = torch.randn(books * entries, dim, generator=generator)
    scale = torch.rand(rows, columns, generator=generator) + 0.5
    return weight, x.T @ x / 40, index, tables, scale


@pytest.mark.parametrize("columns, dim, books", [(12, 2, 1), (12, 3, 2), (11, 4, 2), (7, 1, 1)])
def test_is_the_least_squares_solution(columns, dim, books):
    weight, moment, index, tables, scale = problem(columns=columns, dim=dim, books=books)
    found = refit_tables(tables, index, weight, moment, scale=scale, iterations=500)
    root = torch.linalg.cholesky(moment)
    design = []
    for t in range(len(tables)):
        for d in range(dim):
            unit = torch.zeros_like(tables, dtype=torch.float64)
            unit[t, d] = 1
            design.append((made_of(unit, index, columns, scale.double()) @ root).flatten())
    design, target = torch.stack(design, dim=1), (weight.double() @ root).flatten()
    best = torch.linalg.lstsq(design, target, driver="gelsd").solution
    least = float((design @ best - target).square().sum())
    assert loss(weight, made_of(found, index, columns, scale), moment) == pytest.approx(
        least, rel=1e-6
    )


def test_each_iteration_loses_no_more():
    weight, moment, index, tables, scale = problem(books=2)
    losses = [
        loss(weight, made_of(refit_tables(tables, index, weight, moment, scale=scale, iterations=n), index, 12, scale), moment)
        for n in range(8)
    ]  # fmt: skip
    assert (
        all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses))
        and losses[-1] < 0.9 * losses[0]
    )


def test_entries_that_no_code_names_stay():
    weight, moment, index, tables, _ = problem(entries=4)
    index = index.clamp(max=2)
    found = refit_tables(tables, index, weight, moment)
    assert torch.equal(found[3], tables[3].double()) and not torch.equal(
        found[0], tables[0].double()
    )


def test_nothing_to_gain():
    _, moment, index, tables, scale = problem()
    exact = made_of(tables, index, 12, scale)
    assert torch.allclose(refit_tables(tables, index, exact, moment, scale=scale), tables.double())


@pytest.mark.parametrize(
    "change",
    [
        {"tables": torch.zeros(4)}, {"index": torch.zeros(6, 5, 1, dtype=torch.long)},
        {"moment": torch.eye(11)}, {"target": torch.zeros(12)},
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(change):
    weight, moment, index, tables, _ = problem()
    given = {"tables": tables, "index": index, "target": weight, "moment": moment} | change
    with pytest.raises(UsageError):
        refit_tables(**given)


def test_damaged_values():
    weight, moment, index, tables, _ = problem()
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        refit_tables(tables, index, weight, moment)
