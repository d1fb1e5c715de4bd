"""Convolutions with compressed kernels, and the patches that they multiply."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.tensors.modules import NOTHING, CompressedModule, Sight, Slot, as_parameter


class _CompressedConv(CompressedModule):
    """Convolutions: the geometry is the ordinary module's."""

    convolve: ClassVar[Callable[..., Tensor]]
    channels: ClassVar[int]  # their dimension in the input

    def __init__(
        self, slots: Mapping[str, Slot], bias: Tensor | None, geometry: dict[str, Any],
        pad: tuple[list[int], str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(slots)
        self.bias = None if bias is None else as_parameter(bias)
        self.geometry = geometry
        self.pad = pad

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From a convolution; padding with other than zeros is a step of its own."""
        names = ("stride", "padding", "dilation", "groups")
        geometry = {name: getattr(module, name) for name in names}
        if module.padding_mode == "zeros":
            return cls(slots, module.bias, geometry)
        pad = (module._reversed_padding_repeated_twice, module.padding_mode)
        return cls(slots, module.bias, geometry | {"padding": 0}, pad)

    def transformed(self, x: Tensor, slot: str = "weight") -> Tensor:
        """As for other modules, with the channels where convolutions have them."""
        return super().transformed(x.movedim(self.channels, -1), slot).movedim(-1, self.channels)

    def quantized(self, x: Tensor, slot: str = "weight") -> Tensor:
        """As for other modules, with the channels where convolutions have them."""
        return super().quantized(x.movedim(self.channels, -1), slot).movedim(-1, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in, ...) to (B, out, ...)."""
        inputs = self.transformed(x)
        padded = self.quantized(inputs)
        if self.pad is not None:
            padded = F.pad(padded, self.pad[0], mode=self.pad[1])
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = type(self).convolve(padded, self.operand().dense(x.dtype), bias, **self.geometry)
        if self.observer is None:
            return y
        # What is shown is what is passed on, so that gradients reach it.
        last = y.movedim(self.channels, -1)
        self.show(x, self.patches(inputs), last)
        return last.movedim(-1, self.channels)

    def foresee(self, x: Tensor) -> Sight:
        """See `CompressedModule.foresee`."""
        return Sight("weight", (), NOTHING, self.patches(self.transformed(x)), NOTHING)

    def patches(self, x: Tensor) -> Tensor:
        """What each output position multiplies, (B, positions, in / groups * k...).

        An image without a batch counts as one of one. With more than one group the groups' patches stand one after the other as positions: each
        group's kernels are of one shape, and a statistic over them is pooled.
        """
        x = x if x.ndim == 1 - self.channels else x[None]
        if self.pad is not None:
            x = F.pad(x, self.pad[0], mode=self.pad[1])
        kernel, flat = self.weight.shape[2:], self.channels == -2
        if isinstance(self.geometry["padding"], str):
            x, padding = _padded(x, kernel, self.geometry), 0
        else:
            padding = self.geometry["padding"]
        names = ("dilation", "stride")
        geometry = {name: self.geometry[name] for name in names} | {"padding": padding}
        if flat:  # a line is an image one pixel high
            x, kernel = x.unsqueeze(-2), (1, *kernel)
            geometry = {
                name: (int(name != "padding"), *_tuple(value)) for name, value in geometry.items()
            }
        columns = F.unfold(x, kernel, **geometry)  # (B, in * k, positions)
        width = columns.shape[1] // self.geometry["groups"]
        batch, _, positions = columns.shape
        return columns.reshape(batch, -1, width, positions).transpose(2, 3).flatten(1, 2)


class CompressedConv1d(_CompressedConv):
    """`nn.Conv1d` with a compressed weight (out, in / groups, k)."""

    convolve = staticmethod(F.conv1d)
    channels = -2


class CompressedConv2d(_CompressedConv):
    """`nn.Conv2d` with a compressed weight (out, in / groups, k, k)."""

    convolve = staticmethod(F.conv2d)
    channels = -3


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _padded(x: Tensor, kernel: torch.Size, geometry: dict[str, Any]) -> Tensor:
    """`x` padded as `padding="same"` does: the odd one of two goes to the end."""
    if geometry["padding"] == "valid":
        return x
    sides: list[int] = []
    for size, dilation in zip(reversed(kernel), reversed(_tuple(geometry["dilation"]))):
        total = dilation * (size - 1)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)
