"""What became of each layer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock
from laconic.models.layout import Layer
from laconic.tensors import CompressedTensor

TOLD = 4  # notes of layers that are told


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: of the layer.
        format: such as `int4 g64`.
        weights: how many.
        bits_per_weight: stored, entropy coded, all side information included.
        resident_bits_per_weight: in memory.
        error: `||(W - W') X||^2 / ||W X||^2` on calibration inputs that nothing was fitted to; of the
            weights alone, `||W - W'||^2 / ||W||^2`, where there are no such inputs.
        tokens: positions that its statistics were summed over; 0 without data.
        notes: fall-backs and what else should be known.
    """

    name: str
    format: str
    weights: int
    bits_per_weight: float
    resident_bits_per_weight: float
    error: float
    tokens: int = 0
    notes: tuple[str, ...] = ()


def common_notes(layers: Sequence[LayerReport]) -> list[str]:
    """What was noted of layers, the commonest first: `TOLD` of them, and how many more there are."""
    counts = Counter(note for layer in layers for note in layer.notes)
    most = counts.most_common(TOLD)
    told = [f"{note} ({count} layer{'' if count == 1 else 's'})" for note, count in most]
    rest = sum(counts.values()) - sum(count for _, count in most)
    return [*told, f"and {rest} more notes, layer by layer in the report"] if rest else told


def relative_error(weight: Tensor, value: CompressedTensor) -> float:
    """`||W - W'||^2 / ||W||^2`; 0 where both are zero."""
    dense = weight.double()
    lost = (dense - value.dense(torch.float32)).square().sum().item()
    return lost / max(dense.square().sum().item(), torch.finfo(torch.float64).tiny)


def layer_report(
    live: LiveBlock, layer: Layer, stored: int, stats: LayerStats, error: float | None
) -> LayerReport:
    """The stored bytes of a fused parameter are shared evenly by its parts' weights."""
    record = live.record(layer)
    value = record.weight
    slot = [la for la in live.layers if (la.module, la.slot) == (layer.module, layer.slot)]
    weights = sum(la.shape.numel() for la in slot)
    if error is None:
        weight = live.weight(layer)
        if record.transform is not None:
            weight = record.transform.fold(weight)
        error = relative_error(weight, value)
    return LayerReport(
        layer.name, value.format, value.numel, 8 * stored / max(1, weights),
        8 * record.resident_bytes / max(1, value.numel), error,
        max((c.count for c in stats.collected.values()), default=0), tuple(stats.notes),
    )  # fmt: skip


def from_json(row: dict[str, Any]) -> LayerReport:
    """The report that `asdict` made JSON of."""
    return LayerReport(**(row | {"notes": tuple(row["notes"])}))
