import pytest

from laconic.errors import UsageError
from laconic.evaluate.capacity import DEFAULT, capacity

#: Errors of 1 M values of N(0, 1), from the sheet of "Unified scaling laws": independent of this code.
KNOWN = {
    "rtn:bits=2,group=32,range=minmax": 0.4326,
    "rtn:bits=3,group=32,range=minmax": 0.0513,
    "rtn:bits=4,group=32,range=minmax": 0.00941,
    "rtn:bits=3,group=128,range=minmax": 0.0751,
    "rtn:bits=4,group=128,range=minmax": 0.01379,
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
