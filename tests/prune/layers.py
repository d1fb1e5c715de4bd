"""A layer with correlated inputs, and what it puts out of them."""

import torch

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, Observation
from laconic.models.layout import Layer


def layer(rows=24, columns=48, positions=256, seed=0):
    """A weight (rows, columns) and inputs (positions, columns) of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    size = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    x = torch.randn(positions, columns, generator=generator) @ (torch.eye(columns) + mix) * size
    return torch.randn(rows, columns, generator=generator), x


def stats_of(method, weight, x, name="layer"):
    """What `method` wants to know of the inputs `x`."""
    seen = Observation(x, None)
    return LayerStats(
        Layer(name, name, "weight", weight.shape, "linear"),
        {s: Collected(s).update(seen) for s in method.wants},
    )


def lost(weight, value, x):
    """Share of the energy of the outputs that is lost."""
    y = x @ weight.flatten(1).T
    return float(((y - x @ value.dense().flatten(1).T) ** 2).sum() / (y**2).sum())
