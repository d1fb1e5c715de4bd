"""LoRA: a low-rank update beside a frozen linear layer, trained and then merged into it.

    y = W x + s B A x,  A (rank, in), B (out, rank), s = alpha / rank

The adapter stands in the place of the layer and shows its attributes; it takes the place of
`nn.Linear`, GPT-2's Conv1D and `CompressedLinear`, behind whose input transform and activation quantizer
the update works. `sparse_lora` has updates that keep zeros.

Source: LoRA (Hu et al., 2021, arXiv 2106.09685).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.errors import BadWeights, UsageError
from laconic.tensors import CompressedTensor, Dense, LowRank, Sum
from laconic.tensors.modules import CompressedLinear, as_parameter, is_conv1d
from laconic.tensors.stored import Record

PRECISION = torch.float32  # of A, B and of merged weights before they are rounded once


class LoRA(nn.Module):
    """A linear layer with an update of low rank beside it, which starts at zero.

    Args:
        base: the layer; its parameters are not changed before `merge`.
        rank: columns of B, at least 1.
        alpha: the update is multiplied by alpha / rank; the rank by default.
        dropout: of the update's input in training mode, 0 up to 1.
        generator: draws A, uniform within 1 / sqrt(in); B starts at zero.

    Attributes:
        lora_A: (rank, in), `lora_A.weight` in float32.
        lora_B: (out, rank), `lora_B.weight` in float32.

    Raises:
        UsageError: not a linear layer, or settings out of range.

    Example:
        >>> layer = LoRA(nn.Linear(3, 2), 1, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(layer(torch.ones(1, 3)), layer.base(torch.ones(1, 3)))
        True
    """

    kind: ClassVar[str] = "plain"

    def __init__(
        self, base: nn.Module, rank: int, *, alpha: float | None = None, dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        out_features, in_features = linear_shape(base)
        if rank < 1:
            raise UsageError(f"rank must be at least 1, found {rank}")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout must be 0 up to 1, found {dropout}")
        self.base = base
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.dropout = nn.Dropout(dropout)
        self.lora_A = _factor(rank, in_features, base)
        self.lora_B = _factor(out_features, rank, base)
        bound = 1 / math.sqrt(in_features)
        start = torch.rand(rank, in_features, generator=generator, dtype=PRECISION)
        with torch.no_grad():
            self.lora_A.weight.copy_((2 * start - 1) * bound)
            self.lora_B.weight.zero_()

    @property
    def scaling(self) -> float:
        """What B A is multiplied by, alpha / rank."""
        return self.alpha / self.rank

    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A (rank, in) and B (out, rank)."""
        return as_parameter(self.lora_A.weight), as_parameter(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., in) to (..., out), in the dtype that the layer gives."""
        if isinstance(self.base, CompressedLinear):
            raw, inputs = x, self.base.transformed(x)
            x = self.base.quantized(inputs)
            y: Tensor = self.base.weight.matmul(x, self.base.bias)
            self.base.show(raw, inputs, y)
        else:
            y = self.base(x)
        return y + self.update(self.dropout(x)).to(y.dtype)

    def update(self, x: Tensor) -> Tensor:
        """What is added for `x` (..., in): (..., out)."""
        inner = F.linear(x.to(self.lora_A.weight.dtype), self.lora_A.weight)
        return F.linear(inner, self.lora_B.weight) * self.scaling

    def delta(self) -> Tensor:
        """What is added to the weight, (out, in) float32."""
        return (self.lora_B.weight @ self.lora_A.weight) * self.scaling

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Puts the update into the layer and returns it.

        A dense weight is rounded once to its own dtype. A compressed one becomes the sum of itself and
        a `LowRank` of float32 factors.

        Raises:
            BadWeights: the update holds NaN or infinity; the layer is as before.
        """
        if not torch.isfinite(self.delta()).all():
            raise BadWeights("the update of a LoRA holds NaN or infinity: its training diverged")
        if isinstance(self.base, CompressedLinear):
            record = self.base.records["weight"]
            value = self.merged(record.weight)
            self.base.records["weight"] = Record(value, record.transform, record.activation)
        else:
            weight: Tensor = self.base.weight  # type: ignore[assignment]
            delta = self.delta().T if is_conv1d(self.base) else self.delta()
            weight.copy_((weight.to(PRECISION) + delta).to(weight.dtype))
        return self.base

    def merged(self, value: CompressedTensor) -> CompressedTensor:
        """`value` (out, in) with the update in it."""
        if isinstance(value, Dense):
            return Dense((value.dense(PRECISION) + self.delta()).to(value.dtype))
        left = Dense(self.lora_B.weight.detach() * self.scaling)
        return plus(value, LowRank(left, Dense(self.lora_A.weight.detach().clone())))

    def __getattr__(self, name: str) -> Any:
        """What the adapter has not, the layer has: `weight`, `bias`, `in_features`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(super().__getattr__("base"), name)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.kind}, rank={self.rank}, alpha={self.alpha:g}"


def is_linear(module: nn.Module) -> bool:
    """Whether a LoRA can stand in its place."""
    return type(module) is nn.Linear or isinstance(module, CompressedLinear) or is_conv1d(module)


def linear_shape(module: nn.Module) -> torch.Size:
    """The shape (out, in) of a linear layer's weight; `UsageError` if it is none."""
    if not is_linear(module):
        raise UsageError(
            f"a LoRA takes the place of nn.Linear, Conv1D or CompressedLinear, not of a "
            f"{type(module).__name__}"
        )
    shape: torch.Size = module.weight.shape  # type: ignore[assignment]
    return torch.Size(reversed(shape)) if is_conv1d(module) else torch.Size(shape)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight (out, in) of a linear layer, float32, without gradients."""
    if isinstance(module, CompressedLinear):
        value: Tensor = module.weight.dense(PRECISION)
        return value.detach()
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (weight.T if is_conv1d(module) else weight).detach().to(PRECISION)


def plus(value: CompressedTensor, term: CompressedTensor) -> Sum:
    """The sum of both, flat."""
    parts = value.parts if isinstance(value, Sum) else (value,)
    return Sum((*parts, term))


def _factor(rows: int, columns: int, base: nn.Module) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False, device="meta", dtype=PRECISION)
    place: torch.device = base.weight.device  # type: ignore[assignment]
    return layer.to_empty(device=place)
