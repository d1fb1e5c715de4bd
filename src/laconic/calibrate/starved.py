"""Layers that too little data reached, and what they are given instead."""

from collections.abc import Mapping

import torch

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SUMS, Collected, InputNorm, SecondMoment, Statistic
from laconic.models.layout import Layer


def feed(stats: Mapping[str, LayerStats], device: str = "cpu") -> None:
    """Fills up the sums of starved layers, in place, and notes it for the report.

    An expert that saw fewer positions than it has inputs gets the mean of all experts of its kind in
    the block for what it lacks. A table that is looked up, not multiplied, counts as having
    uncorrelated inputs; its sums are made on `device`.
    """
    for found in stats.values():
        if found.layer.kind == "embedding":
            _look_up(found, device)
    kinds: dict[tuple[str, str], list[LayerStats]] = {}
    for found in stats.values():
        if found.layer.kind == "expert":
            projection = found.layer.name.rpartition(".")[2]
            kinds.setdefault((found.layer.module, projection), []).append(found)
    for members in kinds.values():
        for statistic in members[0].collected:
            _share(members, statistic)


def _share(members: list[LayerStats], statistic: Statistic) -> None:
    pooled = Collected(statistic)
    for member in members:
        pooled.merge(member.collected[statistic])
    if pooled.count == 0:
        return
    filled: dict[int, Collected] = {}  # sums that two projections share are filled up once
    for member in members:
        own, width = member.collected[statistic], member.layer.shape[1]
        if own.count >= width:
            continue
        member.note(
            f"starved: {own.count} positions for {width} inputs; filled up with the mean of "
            f"{len(members)} experts"
        )
        if id(own) not in filled:
            full = Collected(statistic)
            full.merge(own)
            full.merge(pooled, (width - own.count) / pooled.count)
            filled[id(own)] = full
        member.collected = {**member.collected, statistic: filled[id(own)]}


def _look_up(found: LayerStats, device: str) -> None:
    width = found.layer.shape[1]
    sums = {
        SecondMoment(): {"moment": torch.eye(width, dtype=SUMS, device=device)},
        InputNorm(): {
            "sum": torch.zeros(width, dtype=SUMS, device=device),
            "square": torch.ones(width, dtype=SUMS, device=device),
        },
    }  # fmt: skip
    known = {s: Collected(s, 1, sums[s]) for s in found.collected if s in sums}
    found.collected = {**found.collected, **known}
    found.note("a table is looked up, not multiplied: its inputs count as uncorrelated")


def starved(layer: Layer, count: int) -> bool:
    """Whether `count` positions cannot determine a second moment of the layer's inputs."""
    return count < layer.shape[1]
