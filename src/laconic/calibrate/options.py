"""How a run over a model goes about it."""

from dataclasses import dataclass, field
from typing import Literal

from laconic.calibrate.library import StatisticsLibrary
from laconic.calibrate.steps import Farm, LocalFarm
from laconic.errors import UsageError

LOCKSTEP = 1 << 30  # bytes that sequences may hold inside a block, all together


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it; none of these changes what a given method does with given statistics.

    Attributes:
        inputs: statistics of inputs that come through the blocks compressed before (`compressed`), or
            of the dense model's (`dense`).
        order: a block's layers all at once (`block`), or `layer`: those with one input at a time, each
            seeing what the ones before it have become. `auto` is `layer` where all sequences fit into
            `LOCKSTEP` bytes on their way through a block, so that each passes it once, and nothing
            needs the whole block (a method, inputs of the dense model); otherwise `block`.
        device: where to compute.
        batch: sequences in memory at a time; one for each thread by default.
        farm: where layers are compressed.
        library: statistics of dense inputs that are read instead of collected, and kept for the next
            run where they are not there yet; only with `inputs` `dense`, and not with `order` `layer`.
    """

    inputs: Literal["compressed", "dense"] = "compressed"
    order: Literal["auto", "block", "layer"] = "auto"
    device: str = "cpu"
    batch: int = 0
    farm: Farm = field(default_factory=LocalFarm)
    library: StatisticsLibrary | None = None

    def __post_init__(self) -> None:
        if self.library is not None and (self.inputs != "dense" or self.order == "layer"):
            raise UsageError(
                "statistics that are kept are of the dense model's inputs, all layers of a block at "
                "once: give inputs dense (--inputs dense), and not order layer"
            )
