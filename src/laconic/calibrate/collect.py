"""Collects what layers see: sequences through a live block, sums for each layer that was watched.

    stream --sequences--> block --sights--> observations --tasks--> sums --> LayerStats

Layers with one input (query, key and value; gate and up) share the sums that depend on it alone.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock, Trace
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.sums import Sums
from laconic.models.layout import Layer
from laconic.numerics.parallel import parallel_map

Run = Callable[[int], Any]  # takes a sequence through a block


def collect(
    live: LiveBlock, layers: Sequence[Layer], wants: Iterable[Statistic], run: Run,
    sequences: Sequence[int], *, reference: tuple[LiveBlock, Run] | None = None, batch: int = 0,
) -> dict[str, LayerStats]:  # fmt: skip
    """What `layers` of a block see of `sequences`.

    Args:
        live: the block.
        layers: to watch.
        wants: statistics.
        run: takes a sequence through the block.
        sequences: their numbers.
        reference: the dense block and what takes a sequence through it, for `CrossMoment`.
        batch: sequences in memory at a time; one for each thread by default. No result depends on it.

    Returns:
        By layer name. A layer that no sequence reached has empty sums.
    """
    statistics = list(dict.fromkeys(wants))
    if not statistics:
        return {layer.name: LayerStats(layer) for layer in layers}
    sums = Sums(statistics, layers)
    with torch.inference_mode(), ExitStack() as stack:
        watch = stack.enter_context(live.watched(layers, outputs=sums.of_outputs))
        other = watch
        if reference is not None and reference[0] is not live:
            other = stack.enter_context(reference[0].watched(layers, outputs=sums.of_outputs))

        def traced(sequence: int) -> tuple[Trace, Trace | None]:
            with watch.trace() as trace:
                run(sequence)
            if reference is None:
                return trace, None
            with other.trace() as dense:
                reference[1](sequence)
            return trace, dense

        return gather(sums, traced, sequences, batch)


def gather(
    sums: Sums, traced: Callable[[int], tuple[Trace, Trace | None]], sequences: Sequence[int],
    batch: int = 0,
) -> dict[str, LayerStats]:  # fmt: skip
    """Sums what `traced` says of each sequence (and of it in the dense model), in their order.

    Args:
        sums: empty.
        traced: what the layers multiply.
        sequences: their numbers.
        batch: traces in memory at a time; one for each thread by default.
    """
    size = batch or torch.get_num_threads()
    for start in range(0, len(sequences), size):
        for trace, dense in parallel_map(traced, sequences[start : start + size]):
            sums.add(trace, dense)
        sums.run()
    return sums.of_layers()
