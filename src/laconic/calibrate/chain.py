"""A chain of steps: what it wants, where it is cut, and in which order layers go through it."""

from collections.abc import Sequence

import torch

from laconic.calibrate.collect import Run
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.steps import Step
from laconic.calibrate.sums import layers_by_key
from laconic.models.layout import Layer


def wanted(steps: Sequence[Step]) -> list[Statistic]:
    """What any of `steps` wants, each once."""
    return list(dict.fromkeys(statistic for step in steps for statistic in step.wants))


def stages(steps: Sequence[Step]) -> list[list[Step]]:
    """The chain cut behind each step that changes what layers are given."""
    cut: list[list[Step]] = [[]]
    for step in steps:
        cut[-1].append(step)
        if step.changes_inputs:
            cut.append([])
    return [stage for stage in cut if stage]


def in_order(live: LiveBlock, run: Run) -> list[Sequence[Layer]]:
    """Layers by common input, in the order in which a sequence reaches them; others come last."""
    by_key = layers_by_key(live.layers)
    groups: dict[int, list[Layer]] = {}
    with torch.inference_mode(), live.watched(live.layers) as watch, watch.trace() as trace:
        run(0)
        for path, sight in trace:
            slot_level = (path, sight.slot) if sight.positions else None
            key = id(sight.inputs) if slot_level is None else hash(slot_level)
            for position in sight.positions or (0,):
                groups.setdefault(key, []).append(by_key[path, sight.slot, position])
    seen: dict[str, None] = {}
    ordered: list[Sequence[Layer]] = []
    for members in groups.values():
        fresh = [la for la in dict.fromkeys(members) if la.name not in seen]
        slots = {(la.module, la.slot) for la in fresh if la.part is not None}
        fresh += [
            la for la in live.layers if (la.module, la.slot) in slots and la not in fresh
        ]  # experts that the first sequence did not reach
        seen.update(dict.fromkeys(la.name for la in fresh))
        ordered += [fresh] if fresh else []
    rest = [la for la in live.layers if la.name not in seen]
    return ordered + ([rest] if rest else [])
