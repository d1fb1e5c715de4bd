"""What the runner asks of a method, and what it hands to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.stream import Stream
from laconic.models.layout import Layer
from laconic.numerics.parallel import parallel_map
from laconic.tensors.stored import Record


class Step(Protocol):
    """One method of a chain, as the runner sees it.

    Attributes:
        wants: statistics that it must be given.
        changes_inputs: whether it puts a transform before layers, so that what follows in the chain
            needs statistics of the transformed inputs.
    """

    @property
    def wants(self) -> tuple[Statistic, ...]: ...

    @property
    def changes_inputs(self) -> bool: ...


@runtime_checkable
class LayerStep(Step, Protocol):
    """A step that takes one layer at a time, in any order, anywhere."""

    def revise(self, layer: Layer, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """What the layer, whose dense weight is `weight` and which now is `record`, becomes."""
        ...


@runtime_checkable
class BlockStep(Step, Protocol):
    """A step that sees a block whole.

    Attributes:
        follows_dense: whether it must be given the sequences of the dense model as well.
    """

    @property
    def follows_dense(self) -> bool: ...

    def revise_block(self, view: "BlockView") -> None:
        """Installs what its layers become."""
        ...


@dataclass
class BlockView:
    """One block in the middle of a run, for steps that need more than a layer.

    Attributes:
        live: the block; `install` changes it.
        stats: by layer name.
        number: of the block.
        stream: sequences before the block, through the compressed blocks before it.
        reference: the same sequences through the dense model; None where nothing asked for it.
        sequences: numbers of those that may be fitted on.
    """

    live: LiveBlock
    stats: dict[str, LayerStats]
    number: int
    stream: Stream | None
    reference: Stream | None
    sequences: Sequence[int]

    def output(self, sequence: int) -> Any:
        """What the block makes of a sequence, as it is now."""
        assert self.stream is not None
        return self.stream.run(self.number, self.live.module, sequence)

    def target(self, sequence: int, dense: nn.Module) -> Any:
        """What the `dense` block makes of the sequence in the dense model."""
        stream = self.reference or self.stream
        assert stream is not None
        return stream.run(self.number, dense, sequence)


@dataclass(frozen=True)
class Task:
    """One layer for one step."""

    layer: Layer
    weight: Tensor
    record: Record
    stats: LayerStats


class Farm(Protocol):
    """Where layers are compressed."""

    def map(self, step: LayerStep, tasks: Sequence[Task]) -> list[tuple[Record, list[str]]]:
        """What `step` makes of each task, and what it noted, in order."""
        ...


class LocalFarm:
    """This process: layers side by side, one thread each."""

    def map(self, step: LayerStep, tasks: Sequence[Task]) -> list[tuple[Record, list[str]]]:
        return parallel_map(lambda task: work(step, task), tasks)


def work(step: LayerStep, task: Task) -> tuple[Record, list[str]]:
    """One task, done."""
    with torch.no_grad():
        record = step.revise(task.layer, task.weight, task.record, task.stats)
    return record, task.stats.notes
