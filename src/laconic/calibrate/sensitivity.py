"""How much an error of a layer's outputs moves the loss of the whole model."""

from dataclasses import dataclass, replace

from torch import Tensor

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.gradients import collect_gradients
from laconic.calibrate.outline import may_be_whole
from laconic.calibrate.statistics import Observation, Statistic, Task, zero_sums
from laconic.errors import DataError
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress

SEQUENCES = 16  # that are differentiated


@dataclass(frozen=True)
class GradientEnergy(Statistic):
    """Sums of squares of the loss's gradients with respect to a layer's outputs, each for itself.

    Sums: `energy` (out,).
    """

    name = "gradient energy"
    of_inputs = False
    needs = frozenset({"gradients"})

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        assert seen.gradients is not None
        return {"energy": zero_sums(seen.inputs, seen.gradients.shape[1])}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        assert seen.gradients is not None
        gradients = seen.gradients

        def add() -> None:
            sums["energy"] += gradients.square().sum(dim=0).double()

        return [add]


def measure_sensitivity(
    source: ModelSource, calibration: Calibration,
    *, device: str = "cpu", progress: Progress = SILENT,
) -> dict[str, Tensor]:  # fmt: skip
    """What a unit of squared error in each output of a layer adds to the loss, by layer name, up to a factor.

    To second order an error `e` of a layer's outputs adds `e^T F e / 2` to the loss, with F the Fisher
    information of the outputs. Its diagonal is taken, the mean squares of the loss's gradients: comparable
    between layers, which shares of their energy are not, and between the queries, keys and values
    of one matrix.

    Args:
        source: the dense model.
        calibration: its first `SEQUENCES` fitted sequences are differentiated.
        device: where to compute.
        progress: follows the sequences.

    Returns:
        (out,) float64 for each layer, the squared gradients summed over positions; empty where the model is
        too large to be differentiated, or the data has no loss (a classifier without labels).
    """
    if not may_be_whole(source):  # gradients need all of it
        return {}
    few = replace(calibration, fitted=calibration.fitted[:SEQUENCES])
    try:
        found = collect_gradients(source, few, [GradientEnergy()], device=device, progress=progress)
    except DataError:
        return {}
    return {
        name: stats[GradientEnergy()]["energy"]
        for name, stats in found.items()
        if stats.count(GradientEnergy())
    }
