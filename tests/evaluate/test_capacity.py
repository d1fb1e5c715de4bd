import numpy as np
import pytest

from laconic.errors import UsageError
from laconic.evaluate.capacity import DEFAULT, capacity

#: Errors of 1 M values of N(0, 1), from the sheet of "Unified scaling laws": independent of this code.
KNOWN = {
    "fp:format=e2m1,group=16,range=minmax": 0.00886,
    "fp:format=mxfp4,range=minmax": 0.01322,
    "magnitude:sparsity=0.25": 0.00835,
    "magnitude:sparsity=0.5": 0.0714,
    "magnitude:sparsity=0.75": 0.2766,
    "magnitude:pattern=2:4": 0.1323,
    "bcq:bits=2": 0.118,
}


@pytest.mark.parametrize("spec", KNOWN)
def test_known_errors_of_noise(spec):
    assert capacity(spec).gmse == pytest.approx(KNOWN[spec], rel=0.01)


def integer_error(bits, group, most):
    """Error of N(0, 1) on symmetric grids of codes -2^(bits-1)..most, zero among them, that span each group."""
    x = np.random.default_rng(0).standard_normal((2**20 // group, group)).astype(np.float32)
    x *= np.where(x.max(1) > -x.min(1), -1, 1)[:, None]  # the greater extreme below
    half = 2 ** (bits - 1)
    step = -x.min(1) / most if most < half else np.maximum(-x.min(1) / half, x.max(1) / (half - 1))
    codes = np.clip(np.rint(x / step[:, None]), -most, half - 1)
    return float(((codes * step[:, None] - x) ** 2).mean())


@pytest.mark.parametrize(
    "bits, group, sheet",
    [(2, 32, 0.4326), (3, 32, 0.0513), (4, 32, 0.00941), (3, 128, 0.0751), (4, 128, 0.01379)],
)
def test_known_errors_of_integers(bits, group, sheet):
    """Of the sheet's grids, which have a value less than ours, and of ours, both counted here anew."""
    assert integer_error(bits, group, 2 ** (bits - 1) - 1) == pytest.approx(sheet, rel=0.01)
    found = capacity(f"rtn:bits={bits},group={group},range=minmax").gmse
    assert found == pytest.approx(integer_error(bits, group, 2 ** (bits - 1)), rel=0.02)
    assert found < sheet


def small(spec):
    return capacity(spec, rows=128, columns=256)


@pytest.mark.parametrize(
    "weaker, stronger",
    [
        ("rtn:bits=3", "rtn:bits=4"), ("rtn:bits=4,group=128", "rtn:bits=4,group=32"),
        ("magnitude:sparsity=0.7", "magnitude:sparsity=0.5"), ("magnitude:pattern=2:4", "magnitude:sparsity=0.5"),
        ("rtn:bits=2,group=row", "bcq:bits=2"), ("bcq:bits=2", "ecgptq:bits=2.5"),
        ("magnitude:sparsity=0.5+rtn:bits=4", "magnitude:sparsity=0.5"),
    ],
)  # fmt: skip
def test_what_is_worth_more(weaker, stronger):
    assert small(weaker).capacity_bits < small(stronger).capacity_bits


@pytest.mark.parametrize(
    "spec", [*DEFAULT, "wush:block=16+rtn:bits=4", "sparsegpt:pattern=2:4+gptq:bits=4"]
)
def test_no_format_beats_the_bound(spec):
    found = small(spec)
    assert 0 < found.efficiency < 1 and 0 < found.resident_efficiency < 1


def test_without_loss():
    found = small("magnitude:sparsity=0.0")
    assert found.gmse == 0 and found.capacity_bits == float("inf")


@pytest.mark.parametrize(
    "spec, match",
    [
        ("rtm", "did you mean 'rtn'"),
        ("rtn:bit=4", "bits"),
        ("evopress", "single weights"),
        ("", "unknown"),
    ],
)
def test_specs_that_cannot_be(spec, match):
    with pytest.raises(UsageError, match=match):
        capacity(spec)


def test_noise_that_cannot_be():
    with pytest.raises(UsageError, match="even number"):
        capacity("rtn", rows=3)
