"""Which numbers of the points go on which axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.report.points import Point


@dataclass(frozen=True)
class Axis:
    """A number of a point and how it is labelled."""

    label: str
    values: list[float | None]
    log: bool = False


def size_axis(points: Sequence[Point]) -> Axis:
    """Stored bits a weight where most points know them, stored megabytes otherwise."""
    if sum(p.bits_per_weight is not None for p in points) >= max(1, len(points) - 1):
        return Axis("stored bits per weight", [p.bits_per_weight for p in points])
    return Axis("stored MB", [_mega(p.stored_bytes) for p in points])


def resident_axis(points: Sequence[Point]) -> Axis:
    """Bits a weight in memory where known, megabytes otherwise."""
    if sum(p.resident_bits_per_weight is not None for p in points) >= max(1, len(points) - 1):
        return Axis("bits per weight in memory", [p.resident_bits_per_weight for p in points])
    return Axis("MB in memory", [_mega(p.resident_bytes) for p in points])


def quality_axis(points: Sequence[Point]) -> Axis:
    """Excess log-perplexity where runs were paired, else perplexity or accuracy."""
    if any(p.excess is not None and p.ci95 is not None for p in points):
        values = [p.excess if p.ci95 is not None else None for p in points]
        positive = [v for v in values if v is not None]
        return Axis("excess log-perplexity (nats)", values, log=min(positive) > 0)
    metric = next((p.metric for p in points if p.metric), "quality")
    return Axis(metric, [p.quality for p in points], log=metric == "perplexity")


def _mega(count: int | None) -> float | None:
    return None if count is None else count / 1e6
