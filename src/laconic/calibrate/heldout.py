"""The error of layers on inputs that nothing was fitted to, measured while sequences pass by."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from laconic.calibrate.live import LiveBlock, Trace
from laconic.calibrate.sums import layers_by_key
from laconic.models.layout import Layer

ROWS = 1024  # of a layer, evenly spread, on which its error is measured: bounds the memory
SUMS = torch.float64


class HeldOut:
    """Sums `||(W - W') x||^2` and `||W x||^2` of every layer of a compressed block.

    Args:
        live: the block, compressed.
        sequences: numbers of those to measure on.
    """

    def __init__(self, live: LiveBlock, sequences: Sequence[int]) -> None:
        self._live, self._sequences = live, set(sequences)
        self._by_key = layers_by_key(live.layers)
        self._lost: dict[int, dict[str, Tensor]] = {}
        self._pairs = {layer.name: _difference(live, layer) for layer in live.layers}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._watch = self._stack.enter_context(
            self._live.watched(self._live.layers, outputs=False)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._pairs.clear()

    def visit(self, sequence: int, forward: Callable[[], Any]) -> Any:
        """Runs a sequence, and measures on it if it is one of those."""
        if sequence not in self._sequences:
            return forward()
        with self._watch.trace() as trace:
            out = forward()
        self._lost[sequence] = self._measure(trace)
        return out

    def error(self, layer: Layer) -> float | None:
        """Lost over all energy; None for a layer that no sequence reached."""
        rows = [
            self._lost[s][layer.name] for s in sorted(self._lost) if layer.name in self._lost[s]
        ]
        if not rows:
            return None
        lost, whole = torch.stack(rows).sum(dim=0).tolist()
        return float(lost / whole) if whole > 0 else 0.0

    def _measure(self, trace: Trace) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for path, sight in trace:
            x = sight.inputs.reshape(-1, sight.inputs.shape[-1]).float()
            for position in sight.positions or (0,):
                name = self._by_key[path, sight.slot, position].name
                pair = torch.stack(
                    [(x @ part.T).square().sum(dtype=SUMS) for part in self._pairs[name]]
                )
                sums[name] = sums[name] + pair if name in sums else pair
        return sums


def _difference(live: LiveBlock, layer: Layer) -> tuple[Tensor, Tensor]:
    """`W - W'` and `W` (rows, in), fp32, as they stand behind the layer's input transform."""
    record, weight = live.record(layer), live.weight(layer).float()
    if record.transform is not None and layer.part is None:
        weight = record.transform.fold(weight)
    step = -(-weight.shape[0] // ROWS)
    weight = weight.flatten(1)[::step]
    return weight - record.weight.dense(torch.float32).flatten(1)[::step], weight
