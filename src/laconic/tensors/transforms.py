"""Input transforms: what a compressed module does to its input before it multiplies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from laconic.tensors.compressed import InputTransform, State, register_kind


@dataclass(frozen=True, eq=False)
class ChannelScale(InputTransform):
    """Divides input channel c by `scale[c]`; the weight was multiplied by it.

    Attributes:
        scale: (in,) positive.
    """

    scale: Tensor

    kind = "channel scale"

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (..., in) / scale, in the dtype of `x`."""
        return x / self.scale.to(x.dtype)

    def state(self) -> State:
        return State(self.kind, {}, {"scale": self.scale})

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(state.arrays["scale"])

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale}

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        return type(self)(tensors["scale"])


register_kind(ChannelScale)
