"""How often inputs have which size, in bins of fixed edges: what a range costs is read off without the inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.calibrate.statistics import SUMS, Observation, Statistic, Task

PER_OCTAVE = 32  # bins between a magnitude and twice as much: each is 2.2 % wide
OCTAVES = 24  # below and above 1
BINS = 2 * OCTAVES * PER_OCTAVE


@dataclass(frozen=True)
class Histogram(Statistic):
    """Counts of the inputs of a layer by sign and magnitude, all channels together.

    Edges are powers of 2^(1/32) from 2^-24 to 2^24, the same for every layer, so that counts of parts
    add up. What is smaller, zero included, is in the first bin; what is larger is in the last.

    Sums: `counts` (2, 1536): of values at and above zero, and of those below.

    Source: histogram observer of REQuant (Yang et al., 2025), with bins in proportion to the magnitude.
    """

    name = "histogram"

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        return {"counts": torch.zeros(2, BINS, dtype=SUMS, device=seen.inputs.device)}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        def add() -> None:
            x = seen.inputs.reshape(-1)
            place = x.abs().log2_().mul_(PER_OCTAVE).add_(OCTAVES * PER_OCTAVE)
            bins = place.nan_to_num_(neginf=0.0).clamp_(0, BINS - 1).long()
            bins += BINS * (x < 0)
            sums["counts"] += torch.bincount(bins, minlength=2 * BINS).reshape(2, BINS)

        return [add]


def rounding_error(
    counts: Tensor, scale: Tensor, lowest: Tensor | float, highest: Tensor | float
) -> Tensor:
    """The mean squared error of what was counted, rounded to whole steps of `scale` and clipped.

    Values are taken as spread evenly over their bin, where the error is an integral in closed form: with
    t in steps and n the nearest step within the ends, the integral of (s - n)^2 from 0 to t is
    n / 12 + (t - n)^3 / 3.

    Args:
        counts: (2, bins) as `Histogram` sums them.
        scale: (K,) steps, not 0.
        lowest: (K,) or a number: the least multiple of `scale` that there is, at most 0.
        highest: the greatest, at least 0.

    Returns:
        (K,) float64.

    Example:
        >>> counts = torch.zeros(2, BINS)
        >>> counts[0, OCTAVES * PER_OCTAVE + 31] = 1  # a value between 1.957 and 2
        >>> rounding_error(counts, torch.tensor([1.0, 8.0]), 0, 7).sqrt()
        tensor([0.0247, 1.9786], dtype=torch.float64)
    """
    filled = counts.to(SUMS)
    edges = _edges(counts.device)  # (bins + 1,)
    step = scale.to(SUMS).unsqueeze(-1)  # (K, 1)
    ends = [torch.as_tensor(end, dtype=SUMS, device=counts.device) for end in (lowest, highest)]
    low, high = (end.unsqueeze(-1) if end.ndim else end for end in ends)
    total = torch.zeros(len(scale), dtype=SUMS, device=counts.device)
    for sign, of_sign in zip((1, -1), filled, strict=True):
        used = of_sign.nonzero().squeeze(1)  # most bins are empty
        inner, outer = sign * edges[used] / step, sign * edges[used + 1] / step  # (K, used)
        within = (_integral(outer, low, high) - _integral(inner, low, high)) / (outer - inner)
        total += (within * of_sign[used]).sum(dim=-1)
    return total * scale.to(SUMS).square() / filled.sum().clamp(min=1)


def _edges(device: torch.device) -> Tensor:
    steps = torch.arange(BINS + 1, dtype=SUMS, device=device)
    edges = torch.exp2(steps / PER_OCTAVE - OCTAVES)
    edges[0] = 0.0
    return edges


def _integral(t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    n = torch.minimum(torch.maximum(t.round(), low), high)
    return n / 12 + (t - n) ** 3 / 3
