"""A chain of steps: what it wants, where it is cut, and in which order layers go through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laconic.calibrate.collect import Run
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.steps import Step
from laconic.calibrate.sums import layers_by_key
from laconic.models.layout import Layer
from laconic.tensors.modules import Sight


def wanted(steps: Sequence[Step]) -> list[Statistic]:
    """What any of `steps` wants, each once."""
    return list(dict.fromkeys(statistic for step in steps for statistic in step.wants))


def from_passes(steps: Sequence[Step]) -> list[Statistic]:
    """Those of `wanted` that sequences give on their way through a block: all but gradients'."""
    return [statistic for statistic in wanted(steps) if "gradients" not in statistic.needs]


def from_gradients(steps: Sequence[Step]) -> list[Statistic]:
    """Those of `wanted` that a backward pass of the whole model gives."""
    return [statistic for statistic in wanted(steps) if "gradients" in statistic.needs]


def stages(steps: Sequence[Step]) -> list[list[Step]]:
    """The chain cut behind each step that changes what layers are given."""
    cut: list[list[Step]] = [[]]
    for step in steps:
        cut[-1].append(step)
        if step.changes_inputs:
            cut.append([])
    return [stage for stage in cut if stage]


@dataclass(frozen=True)
class Order:
    """The layers of a block in the order in which they compute.

    Attributes:
        groups: those with one input together; fused experts of a module are one group; what the first
            sequence does not reach comes last.
        straight: whether each module is called once, and all under the same modes of torch.
    """

    groups: list[Sequence[Layer]]
    straight: bool


def in_order(live: LiveBlock, run: Run) -> Order:
    """Runs the first sequence through a block, to see in which order its layers compute."""
    by_key = layers_by_key(live.layers)
    groups: dict[Any, list[Layer]] = {}
    modes: set[tuple[bool, bool]] = set()

    def note(_: Sight) -> None:
        modes.add(
            (
                torch.is_autocast_enabled(torch.device(live.device).type),
                torch.is_inference_mode_enabled(),
            )
        )

    with (
        torch.inference_mode(),
        live.watched(live.layers, on_sight=note) as watch,
        watch.trace() as trace,
    ):
        run(0)
        for path, sight in trace:
            key: Any = path if sight.positions else id(sight.inputs)
            for position in sight.positions or (0,):
                groups.setdefault(key, []).append(by_key[path, sight.slot, position])
    seen: dict[str, None] = {}
    ordered: list[Sequence[Layer]] = []
    for members in groups.values():
        fresh = [la for la in dict.fromkeys(members) if la.name not in seen]
        fused = {la.module for la in fresh if la.part is not None}
        fresh += [
            la for la in live.layers if la.module in fused and la not in fresh
        ]  # experts that the first sequence did not reach
        seen.update(dict.fromkeys(la.name for la in fresh))
        ordered += [fresh] if fresh else []
    rest = [la for la in live.layers if la.name not in seen]
    calls = [path for path, sight in trace if not sight.positions]
    straight = len(calls) == len(set(calls)) and len(modes) <= 1
    return Order(ordered + ([rest] if rest else []), straight)
