"""The two models of `l2`: a teacher that stays dense, and a student whose weights are rounded as it computes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from laconic.allocate.fitness import LiveModel
from laconic.calibrate.outline import REFUSALS, call, refused
from laconic.entropy.counter import Kernel, soft_bits
from laconic.errors import DataError
from laconic.models.source import ModelSource
from laconic.tensors import Dense
from laconic.tensors.deadzone import DeadZone, dead_zone_codes, dead_zone_values
from laconic.tensors.stored import Record
from laconic.tune.blocks import first_output
from laconic.tune.estimators import ste_round

PRECISION = torch.float32
COUNTED = 1 << 15  # weights of a layer whose bits are counted at each step
TAPPED = 4  # blocks whose outputs are compared
KEPT_BYTES = 1 << 30  # of the teacher's answers; what is beyond is computed again
Inputs = Sequence[dict[str, Tensor]]


class Student:
    """A copy of a model whose layers are rounded to grids with dead zones; gradients pass the rounding.

    Args:
        source: the model; not changed.
        device: where to compute.

    Attributes:
        model: computes.
        names: of the layers.
        latents: by layer, what is rounded: (out, in, ...) float32.
        log_edge: (layers,) natural logarithms of the edges.
        log_step: (layers,) of the steps.
        beside: bits of headers and tables, and by which coding misses the entropy, as last measured.
    """

    def __init__(self, source: ModelSource, device: str = "cpu") -> None:
        self._live = LiveModel(source, device)
        self.model = self._live.module
        self.names = list(self._live.layers)
        self.dtypes = {name: self._live.weight(name).dtype for name in self.names}
        self.latents = {
            name: nn.Parameter(self._live.weight(name).to(PRECISION, copy=True), False)
            for name in self.names
        }
        count = len(self.names)
        self.log_edge = nn.Parameter(torch.zeros(count, device=device), False)
        self.log_step = nn.Parameter(torch.zeros(count, device=device), False)
        self.beside = 0.0

    @property
    def weights(self) -> int:
        """How many weights the layers have."""
        return sum(latent.numel() for latent in self.latents.values())

    def grid(self, number: int) -> tuple[Tensor, Tensor]:
        """Edge and step of a layer."""
        return self.log_edge[number].exp(), self.log_step[number].exp()

    def install(self) -> None:
        """Has every layer compute with its rounded weight, which gradients pass."""
        for number, name in enumerate(self.names):
            edge, step = self.grid(number)
            codes = ste_round(dead_zone_codes(self.latents[name], edge, step))
            value = dead_zone_values(codes, edge, step)
            self._live.install(name, Record(Dense(value)))

    def bits(self, kernel: Kernel = "cos") -> Tensor:
        """Bits that the codes of all layers take, smoothed so that there are gradients; () float64."""
        total = torch.zeros((), dtype=torch.float64, device=self.log_edge.device)
        for number, name in enumerate(self.names):
            latent = self.latents[name].flatten()
            some = latent[:: max(1, latent.numel() // COUNTED)]
            scale = latent.numel() / max(1, some.numel())
            total = total + scale * soft_bits(dead_zone_codes(some, *self.grid(number)), kernel)
        return total

    @torch.no_grad()
    def value(self, number: int, octave: float = 0.0) -> DeadZone:
        """What a layer is stored as, its grid coarser by `octave`s; on the CPU."""
        name = self.names[number]
        edge, step = (side * 2.0**octave for side in self.grid(number))
        found = DeadZone.of(self.latents[name], edge, step).to("cpu")
        return replace(found, dtype=self.dtypes[name])


class Teacher:
    """The dense model's answers and the outputs of some of its blocks, kept as long as there is room.

    Args:
        source: the model.
        inputs: arguments by name, one sequence each.
        device: where to compute.

    Raises:
        DataError: the model cannot take the inputs, or gives no logits that are finite.
    """

    def __init__(self, source: ModelSource, inputs: Inputs, device: str = "cpu") -> None:
        self._model, self._inputs, self._device = LiveModel(source, device).module, inputs, device
        self.taps = tapped(source)
        self._kept: dict[int, list[Tensor]] = {}
        self._room = KEPT_BYTES

    @torch.no_grad()
    def answers(self, number: int) -> list[Tensor]:
        """Of a sequence: logits (1, ..., V), then the outputs of the blocks `taps`."""
        if number in self._kept:
            return self._kept[number]
        try:
            found = look(self._model, self._inputs[number], self.taps, self._device)
        except REFUSALS as error:
            raise refused(error) from error
        if not torch.isfinite(found[0]).all():
            raise DataError(
                "the dense model's answers are not finite; check the data and the model"
            )
        self._room -= sum(tensor.nbytes for tensor in found)
        if self._room >= 0:
            self._kept[number] = found
        return found


def tapped(source: ModelSource) -> list[str]:
    """The blocks whose outputs are compared, evenly spread, the last among them."""
    names = [block.name for block in source.blocks]
    count = min(TAPPED, len(names))
    return [names[math.ceil((i + 1) * len(names) / count) - 1] for i in range(count)]


def look(
    model: nn.Module, given: dict[str, Tensor], taps: Sequence[str], device: str
) -> list[Tensor]:
    """Logits of a batch, and what the blocks `taps` put out on the way."""
    with _watched(model, taps) as seen:
        output = call(model, given, device)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        raise DataError(f"{type(model).__name__} gives no logits to compare")
    return [logits.to(PRECISION), *seen]


@contextmanager
def _watched(model: nn.Module, paths: Sequence[str]) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(first_output(output))

    handles = [model.get_submodule(path).register_forward_hook(keep) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
