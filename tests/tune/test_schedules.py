import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import UsageError
from laconic.tune.schedules import constant, cosine, cubic, linear

ALL = (constant, linear, cosine)


@given(st.sampled_from(ALL), st.integers(1, 500), st.floats(0, 1))
def test_factors_are_above_0_and_at_most_1(schedule, steps, warmup):
    factors = [schedule(step, steps, warmup=warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    rising = int(warmup * steps)
    assert factors[:rising] == sorted(factors[:rising])
    falling = factors[math.ceil(warmup * steps) :]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("schedule", ALL)
def test_warm_up_reaches_1_at_its_last_step(schedule):
    factors = [schedule(step, 40, warmup=0.25) for step in range(40)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1


def test_values():
    assert [cosine(s, 4, warmup=0) for s in range(4)] == pytest.approx(
        [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    )
    assert linear(9, 10, warmup=0, floor=0.5) == pytest.approx(0.55)
    assert cosine(10, 10, warmup=0, floor=0.25) == 0.25
    assert constant(3, 10) == 1


def test_cubic_is_the_papers():
    """s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3."""
    for step in range(101):
        t = min(1.0, max(0.0, (step - 10) / 65))
        expected = 0.9 + (0.1 - 0.9) * (1 - t) ** 3
        assert 0.1 + 0.8 * cubic(step, 100, begin=0.1, end=0.75) == pytest.approx(expected)


@pytest.mark.parametrize(
    "call",
    [
        partial(cosine, 0, 10, warmup=1.5),
        partial(linear, 0, 10, warmup=-0.1),
        partial(cubic, 0, 10, begin=0.5, end=0.5),
        partial(cubic, 0, 10, end=1.1),
    ],
)
def test_settings_out_of_range(call):
    with pytest.raises(UsageError):
        call()
