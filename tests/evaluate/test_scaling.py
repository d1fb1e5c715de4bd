import csv
import math
from itertools import pairwise

import numpy as np
import pytest

from laconic.errors import DataError
from laconic.evaluate.capacity import capacity
from laconic.evaluate.scaling import COLUMNS, DENSE, Law, Link, Run, fit, read_runs

TRUE = Law(400.0, 1200.0, 1.8, 0.34, 0.36)
LINK = Link(1.0, 0.35, 0.8)
FORMATS = ["rtn:bits=2,group=row", "rtn:bits=3", "rtn:bits=4", "rtn:bits=8,group=row", "magnitude:sparsity=0.5", "magnitude:pattern=2:4"]  # fmt: skip
SIZES, TOKENS = (1e5, 3e5, 1e6, 3e6), (1e7, 3e7, 1e8)


def loss(n, d, rho=1.0):
    return TRUE.a / (n * rho) ** TRUE.alpha + TRUE.b / d**TRUE.beta + TRUE.e


@pytest.fixture(scope="module")
def rho():
    return {name: LINK(capacity(name).gmse) for name in FORMATS}


@pytest.fixture(scope="module")
def runs(rho):
    noise = np.random.default_rng(0)
    dense = [Run(n, d, DENSE, loss(n, d)) for n in SIZES for d in TOKENS]
    others = [Run(n, 3e7, name, loss(n, 3e7, r)) for name, r in rho.items() for n in SIZES[:3]]
    return [Run(r.parameters, r.tokens, r.format, r.loss * math.exp(noise.normal(0, 2e-4))) for r in dense + others]  # fmt: skip


@pytest.fixture(scope="module")
def law(runs):
    return fit(runs)


def test_the_law_comes_back(law, rho):
    assert law.alpha == pytest.approx(TRUE.alpha, rel=0.1)
    assert law.beta == pytest.approx(TRUE.beta, rel=0.1)
    assert law.e == pytest.approx(TRUE.e, rel=0.05)
    assert law.residual < 1e-3
    for name, true in rho.items():
        assert law.rho[name] == pytest.approx(true, rel=0.05)


def test_predictions_of_what_was_not_run(law):
    assert law.predict(1e7, 3e8) == pytest.approx(loss(1e7, 3e8), rel=0.01)
    unseen = "rtn:bits=5,group=row"
    expected = loss(1e6, 1e8, LINK(capacity(unseen).gmse))
    assert law.predict(1e6, 1e8, unseen) == pytest.approx(expected, rel=0.01)


def test_a_format_that_was_left_out(law, rho):
    assert set(law.left_out) == set(FORMATS)
    inner = ("rtn:bits=3", "rtn:bits=4", "magnitude:pattern=2:4")
    assert all(law.left_out[name] == pytest.approx(rho[name], rel=0.1) for name in inner)


def test_ranking_is_by_rho_a_bit(law):
    ranked = law.rank(["rtn:bits=8,group=row", "rtn:bits=4", "magnitude:pattern=2:4"])
    assert [row[0] for row in ranked] == [
        "rtn:bits=4",
        "rtn:bits=8,group=row",
        "magnitude:pattern=2:4",
    ]
    assert all(a[2] >= b[2] for a, b in pairwise(ranked))


def test_link():
    assert LINK(0.0) == LINK.top and LINK(1.0) == 0.0
    assert [LINK(0.25**b) for b in (1, 2, 4)] == sorted(LINK(0.25**b) for b in (1, 2, 4))


def test_too_few_runs(runs):
    with pytest.raises(DataError, match="at least five dense runs"):
        fit([r for r in runs if r.format == DENSE][:4])
    with pytest.raises(DataError, match="several sizes"):
        fit([Run(1e6, d, DENSE, loss(1e6, d)) for d in (1e6, 2e6, 3e6, 4e6, 5e6)])
    few = fit([r for r in runs if r.format in (DENSE, "rtn:bits=4")])
    assert few.link is None and few.left_out == {}
    with pytest.raises(DataError, match="nothing to tell from"):
        few.predict(1e6, 1e7, "rtn:bits=3")


def test_files(tmp_path, runs):
    file = tmp_path / "runs.csv"
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        writer.writerows([r.parameters, r.tokens, r.format, r.loss] for r in runs)
    assert read_runs(file) == runs
    for text, match in (
        ("parameters,tokens,loss\n", "format is missing"),
        ("parameters,tokens,format,loss\n1,2,dense,x\n", "line 2"),
        ("parameters,tokens,format,loss\n1,0,dense,2\n", "above 0"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=match):
            read_runs(file)
    with pytest.raises(DataError, match="no such file"):
        read_runs(tmp_path / "none.csv")
