"""Operators of transformers on integer codes: norms, functions by table, and attention."""

from typing import Any

import torch
from torch import Tensor, nn

from laconic.models.operators import Operators
from laconic.numerics.integers.norms import POINT, integer_norm
from laconic.numerics.integers.softmax import exponents, integer_softmax
from laconic.numerics.integers.tables import Table, look_up, tabulate
from laconic.tensors.packing import matrix_shape
from laconic.tensors.shift_quantizer import ShiftQuantizer
from laconic.tensors.shifted import spread_blocks

GAIN_BITS = 16  # of a norm's weight and bias, in blocks as wide as the inputs'


class IntegerNorm(nn.Module):
    """A LayerNorm or RMSNorm that sees its input as codes and computes with integers.

    Args:
        norm: the one that it replaces, whose parameters it takes.
        operators: how.

    Its input is the sum that the block's own code goes on adding to. With `stream` it is rounded in
    place, so that what is added next is the rounded sum too.
    """

    def __init__(self, norm: nn.Module, operators: Operators) -> None:
        super().__init__()
        self.centre = isinstance(norm, nn.LayerNorm)
        self.eps = float(_eps(norm))
        self.weight: nn.Parameter | None = getattr(norm, "weight", None)
        self.bias: nn.Parameter | None = getattr(norm, "bias", None)
        self.operators = operators

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., C), normalised."""
        which = self.operators.operators
        quantizer = self.operators.inputs()
        if "stream" in which:
            quantizer = self.operators.sums()
            x = _rounded_in_place(x, quantizer)
        if "norm" not in which:
            return self._float(x)
        codes, shift = _codes(x, quantizer)
        y = integer_norm(codes, shift, self.eps, centre=self.centre).double()
        gain = torch.ones(1) if self.weight is None else self._table(self.weight)
        y = y * (gain.to(y) * 2.0**-POINT)
        if self.bias is not None:
            y = y + self._table(self.bias).to(y)
        return y.to(x.dtype).reshape(x.shape)

    def _table(self, values: Tensor) -> Tensor:
        """Weight or bias (C,) in blocks of 16-bit codes."""
        quantizer = ShiftQuantizer(GAIN_BITS, 1, self.operators.columns)
        return quantizer.project(values.detach().float().reshape(1, -1)).reshape(-1)

    def _float(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.centre:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            wide = wide * self.weight.float()
        return (wide if self.bias is None else wide + self.bias.float()).to(x.dtype)


class IntegerActivation(nn.Module):
    """A function of one number, looked up: a table of all codes for each shift.

    Args:
        function: what is tabulated; evaluated once, in float64.
        operators: how inputs are rounded.
    """

    def __init__(self, function: nn.Module, operators: Operators) -> None:
        super().__init__()
        self.function = function
        self.operators = operators
        self._table: Table | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape, each value through the table."""
        if self._table is None or self._table.entries.device != x.device:
            table = tabulate(self.function, self.operators.bits)
            self._table = Table(table.entries.to(x.device), table.out.to(x.device), table.top)
        codes, shift = _codes(x, self.operators.inputs())
        entries, out = look_up(self._table, codes, shift)
        return (entries * torch.exp2(-out.float())).to(x.dtype).reshape(x.shape)


def integer_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, *, operators: Operators, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention with operands of integer codes and an integer softmax.

    Args:
        module: the attention.
        query: (B, H, T, D).
        key: (B, G, S, D), G a divisor of H.
        value: (B, G, S, D).
        attention_mask: added to the scores (B or 1, 1 or H, T, S), or boolean; None for none.
        scaling: of the scores; D^-0.5 by default.
        dropout: not used: compressed models are not trained.
        operators: which parts compute with integers.

    Returns:
        (B, T, H, D), and the weights (B, H, T, S).
    """
    if "attention" in operators.operators:
        quantizer = operators.inputs()
        query, key, value = (_rounded(x, quantizer) for x in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query.float() @ key.float().mT
    mask = _additive(attention_mask, scores)
    if "softmax" in operators.operators:
        codes, shift = integer_softmax(
            exponents(scores, scale, mask), per_row=operators.weights == "row"
        )
        weights = codes.float() * torch.exp2(-shift.float())
    else:
        weights = torch.softmax(scores * scale + (0 if mask is None else mask), -1)
        if "attention" in operators.operators:
            weights = _unsigned(weights, operators.weights == "row")
    out = (weights @ value.float()).to(value.dtype)
    return out.transpose(1, 2).contiguous(), weights.to(value.dtype)


def _eps(norm: nn.Module) -> Any:
    """Of a LayerNorm, torch's RMSNorm (None is its dtype's least step), or one of transformers."""
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    return torch.finfo(torch.float32).eps if eps is None else eps


def _codes(x: Tensor, quantizer: ShiftQuantizer) -> tuple[Tensor, Tensor]:
    """Codes (R, C) of `x` (..., C), and the shift of each."""
    rows = x.reshape(-1, x.shape[-1])
    params = quantizer.fit(rows)
    shift = spread_blocks(params.shift, matrix_shape(rows.shape), params.block)
    return quantizer.encode(rows, params), shift


def _rounded(x: Tensor, quantizer: ShiftQuantizer) -> Tensor:
    return quantizer.project(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _rounded_in_place(x: Tensor, quantizer: ShiftQuantizer) -> Tensor:
    """`x`, rounded; a leaf that takes gradients, or inference's own tensor outside of it, is left alone."""
    rounded = _rounded(x, quantizer)
    if x.requires_grad or (x.is_inference() and not torch.is_inference_mode_enabled()):
        return rounded
    return x.copy_(rounded)


def _unsigned(weights: Tensor, per_row: bool) -> Tensor:
    """Attention weights (..., S), float, rounded to 8 unsigned bits."""
    if per_row:
        exponent = torch.frexp(weights.amax(-1, keepdim=True)).exponent
        step = torch.exp2(exponent.float() - 8)
    else:
        step = torch.tensor(2.0**-8, device=weights.device)
    return (weights / step).round_().clamp_(max=255) * step


def _additive(mask: Tensor | None, scores: Tensor) -> Tensor | None:
    """A mask as what is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask[..., : scores.shape[-1]]
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
