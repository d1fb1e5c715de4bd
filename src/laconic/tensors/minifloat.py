"""Floats of 4 to 8 bits as the OCP formats define them: rounded to even, saturating."""

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.tensors.packing import PRECISION


@dataclass(frozen=True)
class MiniFloat:
    """A float with a sign, an exponent and a mantissa; its codes are its bits.

    Args:
        exponent: bits of the exponent, whose bias is `2 ** (exponent - 1) - 1`.
        mantissa: bits of the mantissa.
        top: code of the greatest finite value; what lies above stands for no number.

    Example:
        >>> E2M1.table()[:8]
        tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 3.0000, 4.0000, 6.0000])
    """

    exponent: int
    mantissa: int
    top: int

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def least_exponent(self) -> int:
        """Exponent of the smallest normal value."""
        return 2 - (1 << self.exponent - 1)

    @property
    def largest(self) -> float:
        """The greatest finite value."""
        return self.value(self.top)

    @property
    def largest_exponent(self) -> int:
        """Exponent of the greatest finite value."""
        return self.least_exponent - 1 + (self.top >> self.mantissa)

    def value(self, magnitude: int) -> float:
        """The value of a code without its sign."""
        exponent, mantissa = divmod(magnitude, 2**self.mantissa)
        hidden = 2**self.mantissa if exponent else 0
        power = self.least_exponent - self.mantissa + max(exponent - 1, 0)
        return float((hidden + mantissa) * 2.0**power)

    def table(self, device: torch.device | None = None) -> Tensor:
        """The value of every code, (2 ** bits,) float32; NaN for those that are no number."""
        half = 2 ** (self.bits - 1)
        positive = [self.value(m) if m <= self.top else torch.nan for m in range(half)]
        values = positive + [-value for value in positive]
        return torch.tensor(values, dtype=PRECISION, device=device)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of the nearest values of `x` (float32), same shape, uint8.

        Ties go to the even code; what is too large becomes the greatest value; zero has no sign.
        """
        magnitude = x.nan_to_num(nan=0.0).abs_().clamp_(max=self.largest)
        exponent = (magnitude.view(torch.int32) >> 23).sub_(127).clamp_(min=self.least_exponent)
        step = (exponent + (127 - self.mantissa) << 23).view(
            PRECISION
        )  # 2 ** (exponent - mantissa)
        code = (magnitude / step).round_().int()  # carries into the exponent where it overflows
        code += exponent.sub_(self.least_exponent) << self.mantissa
        code += ((x < 0) & (code > 0)).int() << self.bits - 1
        return code.to(torch.uint8)


E4M3 = MiniFloat(4, 3, 0x7E)
E5M2 = MiniFloat(5, 2, 0x7B)
E3M2 = MiniFloat(3, 2, 31)
E2M3 = MiniFloat(2, 3, 31)
E2M1 = MiniFloat(2, 1, 7)
MINIFLOATS = {"e4m3": E4M3, "e5m2": E5M2, "e3m2": E3M2, "e2m3": E2M3, "e2m1": E2M1}
