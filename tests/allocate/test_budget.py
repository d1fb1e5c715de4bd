import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.allocate.budget import Budget, Unit
from laconic.errors import BudgetError

SPELLINGS = {
    "bit": (Unit.BITS, 1), "bits": (Unit.BITS, 1), "Bit": (Unit.BITS, 1), "%": (Unit.SHARE, 0.01),
    "B": (Unit.BYTES, 1), "bytes": (Unit.BYTES, 1), "kB": (Unit.BYTES, 1e3),
    "MB": (Unit.BYTES, 1e6), "gb": (Unit.BYTES, 1e9), "KiB": (Unit.BYTES, 1024),
    "MiB": (Unit.BYTES, 2**20), "GiB": (Unit.BYTES, 2**30), "x params": (Unit.PARAMS, 1),
    "xparams": (Unit.PARAMS, 1), "x flops": (Unit.FLOPS, 1), "X FLOPS": (Unit.FLOPS, 1),
    "ms": (Unit.LATENCY, 1),
}  # fmt: skip
amounts = st.decimals("0.001", "9999", places=3)
blank = st.sampled_from(["", " ", "  ", "\t"])


@given(amounts, st.sampled_from(list(SPELLINGS)), blank, blank, blank)
def test_every_spelling(amount, spelling, before, between, after):
    unit, factor = SPELLINGS[spelling]
    budget = Budget.parse(f"{before}{amount}{between}{spelling}{after}")
    assert budget.unit is unit
    assert budget.amount == pytest.approx(float(amount) * factor)


@given(st.integers(1, 10**6), st.sampled_from(list(SPELLINGS)))
def test_what_it_prints_can_be_read(number, spelling):
    budget = Budget.parse(f"{number / 10**4:g}{spelling}")
    again = (
        Budget.parse(str(budget)) if budget.amount >= 1 or budget.unit is not Unit.BYTES else budget
    )
    assert again.unit is budget.unit
    assert again.amount == pytest.approx(
        budget.amount, rel=1e-5, abs=0.5 * (budget.unit is Unit.BYTES)
    )


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "4", "bit", "4 3bit", "four bits", "-4bit", "+4bit", "4bit!", "1e3MB", "1,5GB",
        "4..5bit", ".", ".bit", "nan%", "inf%", "25%%", "4 b i t", "0x10MB", "٤bit", "x flops",
        "4\nbit\n5", "4/2bit",
    ],
)  # fmt: skip
def test_what_cannot_be_read(text):
    with pytest.raises(BudgetError, match="4bit, 25%, 1.5GB"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["4 stones", "3 tb", "2 bytesx", "1x", "5 x bits"])
def test_unknown_units(text):
    with pytest.raises(BudgetError, match="4bit, 25%"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0bit", "0%", "0.0GB", "0ms"])
def test_nothing_left(text):
    with pytest.raises(BudgetError, match="above zero"):
        Budget.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_an_error(text):
    try:
        assert Budget.parse(text).amount > 0
    except BudgetError as error:
        assert repr(text) in str(error)


@pytest.mark.parametrize("text", ["3.5bit resident", "40% resident", "1.5GB  RESIDENT "])
def test_of_memory(text):
    budget = Budget.parse(text)
    assert budget.resident and Budget.parse(str(budget)) == budget
    assert not Budget.parse(text.lower().replace("resident", "")).resident


@pytest.mark.parametrize("text", ["20ms resident", "0.7x params resident"])
def test_what_takes_no_memory_is_not_resident(text):
    with pytest.raises(BudgetError, match="the same in memory"):
        Budget.parse(text)
