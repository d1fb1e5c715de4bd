"""Single layers of models with the second moments of their inputs: what methods are compared on layer by layer.

Inputs are those of the dense model. Methods are fitted to the first windows of training data, errors
measured on the held-out ones after them.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.calibrate.calibration import read_calibration
from laconic.calibrate.collect import collect
from laconic.calibrate.inputs import Subject
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import SecondMoment
from laconic.calibrate.stream import open_stream
from laconic.models.open import open_source

WINDOWS = {"quick": (64, 16), "full": (128, 32)}  # fitted, held out


class Layer(NamedTuple):
    """A layer of a model.

    Attributes:
        name: of the layer.
        weight: (out, in, ...) float32.
        stats: of the inputs that methods are fitted to.
        held_out: (C, C), second moment of those on which errors are measured.
    """

    name: str
    weight: Tensor
    stats: LayerStats
    held_out: Tensor

    @property
    def matrix(self) -> Tensor:
        """The weight (R, C)."""
        return self.weight.reshape(len(self.weight), -1)

    @property
    def role(self) -> str:
        """What all layers like it are called: `q_proj`, `conv1`."""
        words = [w for w in re.split(r"[.\[\]]", self.name) if w and not w.isdigit()]
        return words[-1]

    @property
    def moment(self) -> Tensor:
        """(C, C) of the inputs that methods are fitted to."""
        return self.stats.mean(SecondMoment())


def output_error(weight: Tensor, values: Tensor, moment: Tensor) -> float:
    """||(W - W') X||^2 / ||W X||^2 from the second moment of X."""
    off, whole = weight.double() - values, weight.double()
    return float((off @ moment * off).sum() / (whole @ moment * whole).sum())


def model_layers(model: str, data: Path, slice: str, blocks: int | None = None) -> Iterator[Layer]:
    """Every layer that data reaches, with the second moments of its inputs.

    Args:
        model: what `laconic.load` opens.
        data: that calibration reads.
        slice: `quick` or `full`.
        blocks: layers of so many blocks alone, from the first to the last.
    """
    source = open_source(model)
    fitted, held_out = WINDOWS[slice]
    calibration = read_calibration(
        data, Subject(source.skeleton, source.folder), fitted=fitted, held_out=held_out
    )
    stream = open_stream(source, calibration.inputs)
    wants = SecondMoment()
    last = len(source.blocks) - 1
    count = min(blocks or last + 1, last + 1)
    chosen = {round(last * i / max(1, count - 1)) for i in range(count)}
    for number, block in enumerate(source.blocks):
        live = LiveBlock(source, block)
        run = partial(stream.run, number, live.module)
        layers = live.layers if number in chosen else ()
        seen = [
            collect(live, layers, [wants], run, which)
            for which in (calibration.fitted, calibration.held_out)
            if layers
        ]
        for layer in layers:
            fit, held = (stats[layer.name] for stats in seen)
            if min(fit.count(wants), held.count(wants)) > 0:
                weight = live.weight(layer).float()
                yield Layer(layer.name, weight, fit, held.mean(wants))
        with torch.inference_mode():
            stream.advance(number, live.module)
