"""LoRA for pruned layers: updates that, merged, leave every pruned weight exactly zero.

    y = W x + s ((B A) * M) x        (`MaskedLoRA`: what M prunes stays zero)
    y = W x + s (W * (B A)) x        (`ScaleLoRA`: every zero of W stays zero)

with * elementwise and the rest as in `lora`. Merged into a compressed weight of dense values under a
mask, they become new values under that mask; into others, a masked term of a sum.

Source: PERP (Zimmer et al., 2023, arXiv 2312.15230), sections 3.2 and 3.3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from laconic.errors import UsageError
from laconic.tensors import Bitmask, CompressedTensor, Dense, Masked
from laconic.tensors.modules import CompressedLinear
from laconic.tune.lora import PRECISION, LoRA, dense_weight, linear_shape, plus


class _DenseUpdate(LoRA):
    """Base of updates that are no longer of low rank.

    The product B A is formed, and formed again for the gradient instead of being kept, so that one
    layer's (out, in) is in memory at a time.
    """

    def update(self, x: Tensor) -> Tensor:
        def multiply(x: Tensor) -> Tensor:
            delta = self.delta()
            return F.linear(x.to(delta.dtype), delta)

        product: Tensor = checkpoint(multiply, x, use_reentrant=False, preserve_rng_state=False)
        return product


class MaskedLoRA(_DenseUpdate):
    """An update that is zero where the mask says so: merged, what was pruned stays exactly zero.

    Args:
        base: the pruned layer.
        rank: columns of B, at least 1.
        mask: (out, in), whether each weight is kept; by default where the weight is not zero. It takes
            a byte for each weight.
        alpha: the update is multiplied by alpha / rank; the rank by default.
        dropout: of the update's input in training mode, 0 up to 1.
        generator: draws A.

    Raises:
        UsageError: as `LoRA`, or the mask has another shape.

    Source: PERP (Zimmer et al., 2023, arXiv 2312.15230), MaskLoRA.

    Example:
        >>> base = nn.Linear(2, 1, bias=False)
        >>> base.weight.data = torch.tensor([[0.0, 5.0]])
        >>> layer = MaskedLoRA(base, 1)
        >>> _ = nn.init.ones_(layer.lora_A.weight), nn.init.ones_(layer.lora_B.weight)
        >>> layer.merge().weight.data
        tensor([[0., 6.]])
    """

    kind = "masked"
    mask: Tensor

    def __init__(
        self, base: nn.Module, rank: int, *, mask: Tensor | None = None,
        alpha: float | None = None, dropout: float = 0.0, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base, rank, alpha=alpha, dropout=dropout, generator=generator)
        keep = dense_weight(base) != 0 if mask is None else mask.bool()
        if keep.shape != linear_shape(base):
            raise UsageError(
                f"a mask of shape {tuple(keep.shape)} for a weight (out, in) of shape "
                f"{tuple(linear_shape(base))}"
            )
        self.register_buffer("mask", keep.to(self.lora_A.weight.device), persistent=False)

    def delta(self) -> Tensor:
        return super().delta() * self.mask

    def merged(self, value: CompressedTensor) -> CompressedTensor:
        if isinstance(value, Dense):
            return super().merged(value)
        if isinstance(value, Masked) and isinstance(value.values, Dense):
            within = not bool((self.mask & ~value.mask.dense()).any())
            if within:
                total = value.dense(PRECISION) + self.delta()
                return Masked.of(total.to(value.dtype), value.mask)
        return plus(value, Masked.of(self.delta(), Bitmask.of(self.mask)))


class ScaleLoRA(_DenseUpdate):
    """A weight multiplied elementwise by 1 + s B A: every zero of it stays zero, without a mask.

    PERP's own start, all of A and B at 1 / sqrt(rank) and no 1, gives all ranks the same gradient for
    ever; this form starts from the same weight and lets them differ.

    Args:
        base: the pruned layer; a compressed one must hold dense values, with or without a mask.
        rank: columns of B, at least 1.
        alpha: the product is multiplied by alpha / rank; the rank by default.
        dropout: of the update's input in training mode, 0 up to 1.
        generator: draws A.

    Raises:
        UsageError: as `LoRA`, or the values of a compressed weight cannot be replaced.

    Source: PERP (Zimmer et al., 2023, arXiv 2312.15230), ScaleLoRA.
    """

    kind = "scale"

    def __init__(
        self, base: nn.Module, rank: int, *, alpha: float | None = None, dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base, rank, alpha=alpha, dropout=dropout, generator=generator)
        value = base.weight if isinstance(base, CompressedLinear) else None
        values = value.values if isinstance(value, Masked) else value
        if value is not None and not isinstance(values, Dense):
            raise UsageError(
                f"a scale update changes every value, and {value.format} has none of its own to "
                "change: use a plain or a masked one"
            )

    def delta(self) -> Tensor:
        return super().delta() * dense_weight(self.base)

    def merged(self, value: CompressedTensor) -> CompressedTensor:
        total = (value.dense(PRECISION) + self.delta()).to(value.dtype)
        return Masked.of(total, value.mask) if isinstance(value, Masked) else Dense(total)


KINDS: dict[str, type[LoRA]] = {cls.kind: cls for cls in (LoRA, MaskedLoRA, ScaleLoRA)}
