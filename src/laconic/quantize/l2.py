"""L2: a model trained for the size of its file, through a counter of bits that gradients pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.entropy.counter import Kernel
from laconic.errors import DataError, UsageError
from laconic.method import LayerMethod, ModelMethod, ModelPlan, Needs, Paper
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.quantize._l2_size import NEAR, bits_for_ratio, settle, start
from laconic.quantize._l2_stages import Effort, Stages, stages_of
from laconic.tensors import CompressedTensor
from laconic.tensors.deadzone import DeadZone

PAPER = Paper(
    7, "Lossy and Lossless (L2) Post-training Model Size Compression", 2023, "2308.04269"
)  # fmt: skip
TAXONOMY = ("quantization", "post-training", "weight-only", "entropy coded", "distillation")
EFFORTS = {"small": Effort(3, 50, 100), "full": Effort(3, 300, 1000)}


@dataclass(frozen=True)
class L2(ModelMethod):
    """Trains grids and weights of all layers together for the least loss at the size of the entropy-coded file.

    Every layer has a zone that is zero and a step beyond it. They are fitted to the dense model's answers
    at a price on bits, which a smoothed histogram of the codes counts; then the weights are fitted to the
    outputs of the dense model's blocks with grids fixed, rounding passed straight through; three times, or until
    grids stay where they are.
    At the end one factor for all grids makes the coded bytes what was asked for. The whole model and its
    gradients must be in memory.

    Args:
        bits: stored bits a weight of the blocks' layers, all side information included; above 0, at
            most 8.
        ratio: instead of bits, how many times smaller the whole file is than 32 bits a parameter;
            layers outside the blocks, which stay as they are, count.
        effort: `small`, 150 and 300 steps in three rounds, or the paper's `full`, 900 and 3000.
        price: of as many bits as the model has at 32 a weight, in nats of divergence, above 0; a
            hundredth of it while the size is below its target.
        labels: weight of the cross entropy with the data's labels beside the error of the blocks, at
            least 0; only classifiers have them.
        kernel: of the counter: `cos`, `tri` or `lin`.
        batch: sequences a step; 0 for 16, or 4 for language models.
        seed: of the order of sequences, 0 or more.

    Example:
        >>> L2(ratio=10).settings()["effort"]
        'small'
    """

    bits: float = 2.5
    ratio: float | None = None
    effort: Literal["small", "full"] = "small"
    price: float = 10.0
    labels: float = 0.0
    kernel: Kernel = "cos"
    batch: int = 0
    seed: int = 0

    paper = PAPER
    needs = Needs.TRAINING
    taxonomy = TAXONOMY

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 8:
            raise UsageError(f"bits must be above 0, at most 8, found {self.bits!r}")
        if self.ratio is not None and not self.ratio > 1:
            raise UsageError(f"ratio must be above 1, found {self.ratio!r}")
        for name, values in (("effort", tuple(EFFORTS)), ("kernel", get_args(Kernel))):
            if getattr(self, name) not in values:
                raise UsageError(f"{name} must be one of {values}, found {getattr(self, name)!r}")
        if not self.price > 0 or not self.labels >= 0:
            raise UsageError(
                f"price must be above 0 and labels at least 0, found {self.price!r}, {self.labels!r}"
            )
        if self.batch < 0 or self.seed < 0:
            raise UsageError(
                f"batch and seed must be 0 or more, found {self.batch!r}, {self.seed!r}"
            )

    def plan(
        self, source: ModelSource, calibration: Calibration | None,
        *, device: str = "cpu", progress: Progress | None = None,
    ) -> ModelPlan:  # fmt: skip
        """The codes of each layer.

        Raises:
            DataError: there are no sequences, or the model cannot take them.
            BudgetError: the size cannot be reached.
        """
        if calibration is None or not len(calibration.fitted):
            raise DataError("l2 trains on calibration sequences: give --data")
        bits = self.bits if self.ratio is None else bits_for_ratio(source, self.ratio)
        stages = stages_of(
            source, calibration, device, bits=bits, price=self.price, labels=self.labels,
            kernel=self.kernel, batch=self.batch, seed=self.seed, progress=progress or SILENT,
        )  # fmt: skip
        start(stages.student, bits)
        stages.run(EFFORTS[self.effort])
        taken = settle(stages.student, bits, near=NEAR)
        values = dict(_values(stages))
        whole = f"l2: {taken:.4g} stored bits a weight, {bits:.4g} were asked for"
        return ModelPlan(
            {name: _CodedWeight(value) for name, value in values.items()},
            notes=(whole, *(f"l2, {note}" for note in stages.notes)),
        )


@dataclass(frozen=True)
class _CodedWeight(LayerMethod):
    """Puts in a value that was found already, by a method that saw the whole model.

    Args:
        value: of the layer.
    """

    value: DeadZone

    paper = PAPER
    taxonomy = TAXONOMY

    def settings(self) -> dict[str, Any]:
        """Where the grid stands; the codes are in the file."""
        return {"edge": self.value.edge.item(), "step": self.value.step.item()}

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """The value; `weight` (out, in, ...) must be of its shape."""
        if weight.shape != self.value.shape:
            raise UsageError(
                f"{stats.layer.name} has shape {tuple(weight.shape)}, its codes were found for "
                f"{tuple(self.value.shape)}"
            )
        return self.value.to(weight.device)


def _values(stages: Stages) -> Iterator[tuple[str, DeadZone]]:
    student = stages.student
    for number, name in enumerate(student.names):
        yield name, student.value(number)
