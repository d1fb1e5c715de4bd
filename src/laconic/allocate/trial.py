"""What a chain of methods does to the answers of a whole model, tried in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from laconic.allocate.fitness import DenseKL, LiveModel
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.options import RunOptions
from laconic.calibrate.outline import may_be_whole
from laconic.calibrate.runner import run_layers
from laconic.calibrate.steps import Step
from laconic.errors import UsageError
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.tensors.stored import Record


class Trial:
    """Runs chains on a model and says how far its answers move from the dense model's.

    Measured is the KL divergence, in nats, on the sequences that nothing is fitted to.

    Args:
        source: the model; it stays as it is.
        calibration: its held-out sequences are asked.
        also: as for `compress`.
        options: of the runs.
        progress: follows them.

    Raises:
        UsageError: nothing is held out, or the model takes more than 8 GiB in fp32.
        DataError: the model gives no logits.

    Attributes:
        sequences: how many are asked.
    """

    def __init__(
        self, source: ModelSource, calibration: Calibration, *, also: Sequence[str] = (),
        options: RunOptions | None = None, progress: Progress = SILENT,
    ) -> None:  # fmt: skip
        self._source, self._calibration, self._also = source, calibration, also
        self._options, self._progress = options or RunOptions(), progress
        inputs = [calibration.inputs[number] for number in calibration.held_out]
        if not inputs:
            raise UsageError("plans are tried on sequences that are held out, and there are none")
        if not may_be_whole(source):
            raise UsageError("plans are tried on whole models, of up to 8 GiB in fp32")
        self.sequences = len(inputs)
        self._model = LiveModel(source, self._options.device)
        self._kl = DenseKL(self._model.module, inputs, device=self._options.device)
        #: layers are measured for reports, of which there is none here
        self._fitted = replace(calibration, held_out=range(0))

    def __call__(self, steps: Sequence[Step]) -> float:
        """The divergence behind `steps`; the model is dense again afterwards."""
        with _Installing(self._model) as sink:
            run_layers(
                self._source, sink, steps, calibration=self._fitted, also=self._also,
                options=self._options, progress=self._progress, what="trying a plan",
            )  # fmt: skip
            return self._kl.measure()


class _Installing(NoSink):
    """Puts what it is given into a live model, and takes it out again at the end."""

    def __init__(self, model: LiveModel) -> None:
        self._model = model
        self._before: dict[str, dict[str, Record]] = {}

    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        self._before[path] = self._model.put(path, slots)
        return super().put_module(path, slots)

    def __exit__(self, *raised: object) -> None:
        for path, slots in self._before.items():
            self._model.put(path, slots)
