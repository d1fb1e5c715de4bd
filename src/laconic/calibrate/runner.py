"""The runner: reads a model block by block, has each layer compressed, hands the results on.

    source --one block--> layers --compress--> slots of modules --> sink

One block is in memory at a time. Tensors that no method touches pass through; those of embeddings
and heads are stored without loss as byte planes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.errors import BadWeights, UsageError, did_you_mean
from laconic.models.layout import Layer
from laconic.models.sink import Sink
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.tensors import CompressedTensor, Dense, Stacked
from laconic.tensors.stored import Record

Compress = Callable[[Layer, Tensor], CompressedTensor]
EXTRAS = ("embeddings", "rest")  # what `also` may name besides module paths


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: of the layer.
        format: such as `int4 g64`.
        weights: how many.
        bits_per_weight: stored, entropy coded, all side information included.
        resident_bits_per_weight: in memory.
        error: `||W - W'||^2 / ||W||^2`.
    """

    name: str
    format: str
    weights: int
    bits_per_weight: float
    resident_bits_per_weight: float
    error: float


def run_layers(
    source: ModelSource, sink: Sink, compress: Compress,
    *, also: Sequence[str] = (), progress: Progress = SILENT,
) -> list[LayerReport]:  # fmt: skip
    """Compresses every layer of the blocks of `source`, and those that `also` names, into `sink`.

    Args:
        source: where the model comes from.
        sink: where it goes to.
        compress: makes the compressed value of a layer's weight (out, in, ...).
        also: `"embeddings"`, `"rest"` (other layers outside the blocks, such as the head) or paths
            of modules.
        progress: follows the blocks.

    Returns:
        One report for each layer, in order.

    Raises:
        BadWeights: a weight holds NaN or infinity; the message names the tensor.
        UsageError: `also` names nothing in the model.
    """
    extra, kept = choose_extra(source, also)
    reports: list[LayerReport] = []
    done: set[str] = set()
    for block in progress.track(source.blocks, "compressing blocks"):
        names = source.tensors_below(block.name)
        reports += _run(source, sink, compress, block.layers, names)
        done.update(names)
    for module, layers in _by_module(extra).items():
        reports += _run(source, sink, compress, layers, source.tensors_below(module))
        done.update(source.tensors_below(module))
    for name in [n for n in source.sizes() if n not in done]:
        tensor = source.read([name])[name]
        if name in kept:
            sink.keep_module(kept[name].module, {kept[name].slot: Record(Dense(tensor))})
        else:
            sink.put_tensor(name, tensor)
    return reports


def choose_extra(source: ModelSource, also: Sequence[str]) -> tuple[list[Layer], dict[str, Layer]]:
    """Layers outside the blocks: (those that `also` names, the others by parameter)."""
    paths = [layer.module for layer in source.extra_layers]
    for name in also:
        if name not in EXTRAS and name not in paths:
            raise UsageError(f"--also {name}: {did_you_mean(name, [*EXTRAS, *paths])}")

    def wanted(layer: Layer) -> bool:
        kind = "embeddings" if layer.kind == "embedding" else "rest"
        return kind in also or layer.module in also

    chosen = [layer for layer in source.extra_layers if wanted(layer)]
    kept = {
        layer.parameter: layer
        for layer in source.extra_layers
        if not wanted(layer) and not layer.transposed and layer.part is None
    }
    return chosen, kept


def checked_weight(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The layer's weight; raises `BadWeights` naming it if it is not finite."""
    weight = layer.take(tensors)
    if not torch.isfinite(weight).all():
        where = (~torch.isfinite(weight)).nonzero()[0].tolist()
        raise BadWeights(
            f"{layer.name}.weight holds {weight[tuple(where)].item()} at {where}: "
            "the checkpoint is damaged or diverged; nothing was written"
        )
    return weight


def _run(
    source: ModelSource, sink: Sink, compress: Compress, layers: Iterable[Layer], names: list[str]
) -> list[LayerReport]:
    """Compresses `layers`, whose tensors and neighbours are `names`."""
    tensors = source.read(names)
    reports = []
    touched: set[str] = set()
    for module, members in _by_module(layers).items():
        values: dict[str, dict[tuple[int, int], CompressedTensor]] = {}
        errors = {}
        for layer in members:
            weight = checked_weight(layer, tensors)
            value = compress(layer, weight)
            errors[layer.name] = relative_error(weight, value)
            index, first, _ = layer.part or (0, -1, -1)
            values.setdefault(layer.slot, {})[index, first] = value
            touched.add(layer.parameter)
        stored = sink.put_module(module, {slot: _record(parts) for slot, parts in values.items()})
        for layer in members:
            reports.append(
                _report(layer, values[layer.slot], stored[layer.slot], errors[layer.name])
            )
    for name in names:
        if name not in touched:
            sink.put_tensor(name, tensors[name])
    return reports


def relative_error(weight: Tensor, value: CompressedTensor) -> float:
    """`||W - W'||^2 / ||W||^2`; 0 where both are zero."""
    dense = weight.double()
    lost = (dense - value.dense(torch.float32)).square().sum().item()
    return lost / max(dense.square().sum().item(), torch.finfo(torch.float64).tiny)


def _by_module(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.module, []).append(layer)
    return groups


def _record(parts: Mapping[tuple[int, int], CompressedTensor]) -> Record:
    """One value for a slot: the whole, or the parts of a fused parameter in order."""
    if (0, -1) in parts:
        return Record(parts[0, -1])
    keys = sorted(parts)
    slices = len({index for index, _ in keys})
    return Record(Stacked(tuple(parts[key] for key in keys), len(keys) // slices))


def _report(
    layer: Layer, parts: Mapping[tuple[int, int], CompressedTensor], stored: int, error: float
) -> LayerReport:
    """The stored bytes of a fused parameter are shared evenly by its parts' weights."""
    index, first, _ = layer.part or (0, -1, -1)
    value = parts[index, first]
    weights = sum(part.numel for part in parts.values())
    return LayerReport(
        layer.name, value.format, value.numel, 8 * stored / max(1, weights),
        8 * value.resident_bytes / max(1, value.numel), error,
    )  # fmt: skip
