"""How much an error of a layer's outputs moves the answers of the whole model."""

from laconic.allocate.fitness import DenseKL, LiveModel
from laconic.calibrate.calibration import Calibration
from laconic.errors import DataError
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.tensors import IntQuantizer
from laconic.tensors.stored import Record

#: What each layer is rounded with, alone. Its error is well above that of fp32, and the answers still
#: change by as much more as the error is greater.
PROBE = IntQuantizer(bits=3, group=64)
RUNS = 512  # of sequences through the model, about as many as calibration takes
FEWEST, MOST = 2, 8  # sequences
LARGEST = 8 << 30  # bytes of a model in fp32: all of it must be in memory


def measure_sensitivity(
    source: ModelSource, calibration: Calibration,
    *, device: str = "cpu", progress: Progress = SILENT,
) -> dict[str, float]:  # fmt: skip
    """The divergence of the model's answers when one layer alone is rounded by `PROBE`, by layer name.

    To second order the divergence is a quadratic form of the error. Divided by the layer's own error
    under the same probe it says what errors of any kind cost there, in nats; gradients, which need no
    rounding, miss what attention makes of errors in queries and keys (by a factor of 4 in GPT-2).

    Args:
        source: the dense model.
        calibration: its first fitted sequences are used, `MOST` at most, fewer where there are many layers.
        device: where to compute.
        progress: follows the layers.

    Returns:
        Mean KL divergence over the positions, nats, at least 0; empty where the model is too large to be
        held in fp32, or its answers cannot be compared.
    """
    layers = [layer for block in source.blocks for layer in block.layers]
    if 4 * sum(layer.shape.numel() for layer in layers) > LARGEST or not layers:
        return {}
    count = min(MOST, max(FEWEST, RUNS // len(layers)))
    inputs = [calibration.inputs[number] for number in calibration.fitted[:count]]
    model = LiveModel(source, device)
    try:
        divergence = DenseKL(model.module, inputs, device=device)
    except DataError:
        return {}
    found = {}
    names = progress.track(list(model.layers), "measuring sensitivities", total=len(model.layers))
    for number, name in enumerate(names):
        model.install(name, Record(PROBE.quantize(model.weight(name).float())))
        found[name] = max(0.0, divergence((number,), divergence.samples, 0))
        model.install(name, None)
    return found
