"""Golden-section search, many one-dimensional problems at once."""

from collections.abc import Callable

import torch
from torch import Tensor

RATIO = (5**0.5 - 1) / 2


def golden_section(
    loss: Callable[[Tensor], Tensor], low: float, high: float, shape: tuple[int, ...],
    *, grid: int = 9, steps: int = 10, device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """Minimises `loss` on [low, high] for each element of `shape` on its own.

    A grid finds the valley (quantization errors are not unimodal), golden section refines within
    it (Kiefer, 1953). The best point that was evaluated is returned, so that the result is never
    worse than any grid point, `low` and `high` included.

    Args:
        loss: maps points (*shape) to losses (*shape).
        low: lower end of the interval.
        high: upper end of the interval.
        shape: one problem each.
        grid: grid points, at least 3.
        steps: golden-section steps; each shrinks the valley by 0.618.
        device: where the points live.

    Returns:
        (*shape) float32 minimisers.

    Example:
        >>> goal = torch.tensor([0.3, 0.8])
        >>> golden_section(lambda t: (t - goal) ** 2, 0.0, 1.0, (2,), steps=20)
        tensor([0.3000, 0.8000])
    """
    points = torch.linspace(low, high, grid, dtype=torch.float32, device=device)
    values = torch.stack([loss(p.expand(shape)) for p in points])  # (grid, *shape)
    best_value, best_index = values.min(dim=0)
    best = points[best_index]
    left, right = (
        points[(best_index - 1).clamp(min=0)],
        points[(best_index + 1).clamp(max=grid - 1)],
    )
    a, b = right - RATIO * (right - left), left + RATIO * (right - left)
    loss_a, loss_b = loss(a), loss(b)

    def keep(point: Tensor, value: Tensor) -> None:
        nonlocal best, best_value
        better = value < best_value
        best, best_value = torch.where(better, point, best), torch.where(better, value, best_value)

    keep(a, loss_a)
    keep(b, loss_b)
    for _ in range(steps):
        go_left = loss_a < loss_b
        left, right = torch.where(go_left, left, a), torch.where(go_left, b, right)
        a, b = (
            torch.where(go_left, right - RATIO * (right - left), b),
            torch.where(go_left, a, left + RATIO * (right - left)),
        )
        point = torch.where(go_left, a, b)
        fresh = loss(point)
        keep(point, fresh)
        loss_a, loss_b = torch.where(go_left, fresh, loss_b), torch.where(go_left, loss_a, fresh)
    return best
