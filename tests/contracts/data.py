"""Statistics for methods under test: what a layer would have seen of correlated inputs."""

import torch

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, Observation
from laconic.models.layout import Layer


def stats_for(method, weight, positions=96):
    """What `method` wants, of inputs of `weight` (out, in, ...)."""
    generator = torch.Generator().manual_seed(1)
    columns = weight.reshape(weight.shape[0], -1).shape[1]
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(positions, columns, generator=generator) @ (torch.eye(columns) + mix)
    seen = Observation(x, x @ weight.flatten(1).float().nan_to_num(0, 0, 0).T, reference=x)
    layer = Layer("layer", "layer", "weight", weight.shape, "linear")
    return LayerStats(layer, {s: Collected(s).update(seen) for s in method.wants})
