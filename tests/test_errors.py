import pytest

from laconic import errors
from laconic.errors import (
    BudgetError,
    LaconicError,
    MissingExtra,
    OutputExists,
    UsageError,
    did_you_mean,
)

EVERY = [
    v for v in vars(errors).values() if isinstance(v, type) and v.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", EVERY)
def test_one_base_catches_all(kind):
    assert issubclass(kind, LaconicError) and kind.__doc__


@pytest.mark.parametrize("kind", [BudgetError, OutputExists])
def test_a_wrong_call_is_a_usage_error(kind):
    assert issubclass(kind, UsageError)


def test_a_missing_extra_names_the_command():
    with pytest.raises(LaconicError) as found:
        raise MissingExtra("ray", "farm")
    assert str(found.value) == "ray is not installed; it comes with: pip install 'laconic[farm]'"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gptg", "did you mean 'gptq'?"),
        ("RTN", "known: awq, gptq, rtn"),  # case counts
        ("zzz", "known: awq, gptq, rtn"),
    ],
)
def test_the_nearest_name_or_all(name, said):
    assert did_you_mean(name, iter(["rtn", "gptq", "awq"])) == said


def test_nothing_is_known():
    assert did_you_mean("rtn", []) == "known: "
