"""Layers outside the blocks, and which of them a run touches."""

from collections.abc import Sequence

from laconic.errors import UsageError, did_you_mean
from laconic.models.layout import Layer
from laconic.models.source import ModelSource

EXTRAS = ("embeddings", "rest")  # what `also` may name besides module paths


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
