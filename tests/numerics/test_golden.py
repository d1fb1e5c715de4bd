import pytest
import torch

from laconic.numerics.golden import golden_section


def test_finds_the_minima_of_many_parabolas():
    goals = torch.rand(5, 7)
    found = golden_section(lambda t: (t - goals) ** 2, 0.0, 1.0, (5, 7), steps=25)
    assert torch.allclose(found, goals, atol=1e-3)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("goal", [0.2, 1.0])
def test_minimum_at_an_end_is_found_exactly(goal):
    found = golden_section(lambda t: (t - goal).abs(), 0.2, 1.0, (1,))
    assert found.item() == pytest.approx(goal, abs=1e-7)


def test_returns_the_best_point_that_was_evaluated():
    """Also where the loss has many valleys, and when the last point is the best."""
    seen = []

    def loss(t):
        values = torch.sin(37 * t) + 0.3 * torch.cos(91 * t + torch.arange(6))
        seen.append((t.clone(), values))
        return values

    for steps in (0, 1, 4, 10):
        seen.clear()
        found = golden_section(loss, 0.0, 1.0, (6,), steps=steps)
        least = torch.stack([values for _, values in seen]).amin(dim=0)
        assert torch.equal(loss(found), least)


def test_enough_grid_points_find_the_right_valley():
    wavy = golden_section(
        lambda t: torch.cos(30 * t) + (t - 0.7) ** 2, 0.0, 1.0, (1,), grid=129, steps=20
    )
    assert wavy.item() == pytest.approx(torch.pi * 7 / 30, abs=2e-3)


def test_no_problems_at_all():
    assert golden_section(lambda t: t**2, 0.0, 1.0, (0, 3)).shape == (0, 3)


def test_default_dtype_does_not_matter():
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = golden_section(lambda t: (t - 0.3) ** 2, 0.0, 1.0, (1,), steps=20)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.3, abs=1e-3)
