"""Straight-through estimators: what has no useful derivative is given one.

Each is an ordinary function of tensors; forward it is exact, backward it is what its docstring says.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laconic.errors import UsageError

TINY = 1e-12  # smallest step of a fitted scale


def ste_round(x: Tensor) -> Tensor:
    """Rounds, ties to even; the gradient passes as if it had not.

    Source: Estimating or Propagating Gradients (Bengio et al., 2013, arXiv 1308.3432).

    Example:
        >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
        >>> ste_round(x).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    return _Round.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def clipped_round(x: Tensor, low: float, high: float) -> Tensor:
    """Rounds after clipping to [low, high]; the gradient passes where nothing was clipped.

    Example:
        >>> x = torch.tensor([0.4, 9.0], requires_grad=True)
        >>> clipped_round(x, 0, 3).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """
    return ste_round(x.clamp(low, high))


def ste_sign(x: Tensor, clip: float = 1.0) -> Tensor:
    """-1 or +1, +1 at 0; the gradient passes where |x| <= clip.

    Args:
        x: any shape.
        clip: above 0; infinity lets every gradient pass.

    Source: Binarized Neural Networks (Courbariaux et al., 2016, arXiv 1602.02830), equation 4.

    Example:
        >>> x = torch.tensor([-3.0, 0.0, 0.5], requires_grad=True)
        >>> signs = ste_sign(x)
        >>> signs.sum().backward()
        >>> signs.tolist(), x.grad.tolist()
        ([-1.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    """
    if not clip > 0:
        raise UsageError(f"clip must be above 0, found {clip}")
    return _Sign.apply(x, clip)  # type: ignore[no-any-return, no-untyped-call]


def fake_quantize(
    x: Tensor, scale: Tensor, zero: Tensor | float, low: float, high: float
) -> Tensor:
    """The values of `x` on a uniform grid, with gradients to `x`, `scale` and `zero`.

    `y = (clamp(round(x / scale) + round(zero), low, high) - round(zero)) * scale`. With the rounding
    taken as the identity, the gradient to x is 1 inside the grid and 0 outside; that to the scale is
    round(x / scale) - x / scale inside and low - zero or high - zero outside; that to zero is 0 inside
    and -scale outside.

    Args:
        x: any shape.
        scale: step of the grid, above 0; of a shape that is broadcast to that of `x`.
        zero: code of 0, like `scale`; rounded.
        low: smallest code.
        high: largest code.

    Returns:
        The shape and dtype of `x`.

    Raises:
        UsageError: low is not below high.

    Source: Learned Step Size Quantization (Esser et al., 2020, arXiv 1902.08153), equation 3, and
    LSQ+ (Bhalgat et al., 2020, arXiv 2004.09576), equations 4 to 6, for the zero.

    Example:
        >>> fake_quantize(torch.tensor([0.3, 2.0]), torch.tensor(0.25), 0, -4, 3)
        tensor([0.2500, 0.7500])
    """
    if not low < high:
        raise UsageError(f"codes run from low to high, found {low} and {high}")
    offset = ste_round(torch.as_tensor(zero, dtype=scale.dtype, device=scale.device))
    codes = (ste_round(x.to(scale.dtype) / scale) + offset).clamp(low, high)
    return ((codes - offset) * scale).to(x.dtype)


def lsq_quantize(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """`fake_quantize` around 0 whose scale learns at the pace of the weights.

    The gradient to a scale is divided by sqrt(N high), N being the elements that share it.

    Args:
        x: any shape.
        scale: step of the grid, above 0, broadcast to `x`; `lsq_scale` starts it.
        low: smallest code, such as -2^(b-1).
        high: largest code, such as 2^(b-1) - 1; above 0.

    Source: Learned Step Size Quantization (Esser et al., 2020, arXiv 1902.08153), section 2.2.
    """
    if not high > 0:
        raise UsageError(f"the largest code must be above 0, found {high}")
    shared = x.numel() / max(1, scale.numel())
    return fake_quantize(x, scale_gradient(scale, (shared * high) ** -0.5), 0, low, high)


def lsq_scale(x: Tensor, high: float, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The start of LSQ's scale, `2 mean|x| / sqrt(high)`, over `dim` (kept) or everything.

    Source: Learned Step Size Quantization (Esser et al., 2020, arXiv 1902.08153), section 2.1.

    Example:
        >>> lsq_scale(torch.tensor([[1.0, -3.0]]), 4, dim=1)
        tensor([[2.]])
    """
    size = x.detach().abs()
    mean = size.mean() if dim is None else size.mean(dim, keepdim=True)
    return (2 * mean / math.sqrt(high)).clamp(min=TINY)


Backward = Literal["kept", "all", "near", "banded"]


def ste_sparse(x: Tensor, share: float, backward: Backward = "banded", band: float = 0.5) -> Tensor:
    """The greatest magnitudes of a tensor, zeros elsewhere; the gradient passes to those that `backward` says.

    With T the least magnitude that is kept: `kept` passes it to what is kept, `all` to everything, `near` to
    magnitudes above `band` T as well, and `banded` to those up to `band` T instead: small values, which are
    zeroed at little error, may grow, while those just below T, whose error is greatest, are held still.

    Args:
        x: any shape.
        share: kept, above 0 and at most 1; of equals the first.
        backward: as above.
        band: 0 to 1.

    Source: Unified Scaling Laws for Compressed Representations (Panferov et al., 2025, arXiv 2506.01863), figure 5;
    the width of the band is ours.

    Example:
        >>> x = torch.tensor([4.0, 3.0, 1.9, 1.0], requires_grad=True)
        >>> y = ste_sparse(x, 0.5)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([4.0, 3.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0])
    """
    if not 0 < share <= 1 or not 0 <= band <= 1:
        raise UsageError(
            f"share must be in 0..1 and above 0, band in 0..1, found {share!r}, {band!r}"
        )
    if backward not in get_args(Backward):
        raise UsageError(f"backward must be one of {get_args(Backward)}, found {backward!r}")
    return _Sparse.apply(x, share, backward, band)  # type: ignore[no-any-return, no-untyped-call]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, with its gradient multiplied by `factor`.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> scale_gradient(x, 0.5).backward()
        >>> x.grad
        tensor([0.5000])
    """
    return _ScaleGradient.apply(x, factor)  # type: ignore[no-any-return, no-untyped-call]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rounded: Tensor = x.round()
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: float) -> Tensor:
        ctx.save_for_backward(x.abs() <= clip)
        signs: Tensor = torch.where(x < 0, -1.0, 1.0)
        return signs.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (passes,) = ctx.saved_tensors
        return grads[0] * passes, None


class _Sparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, backward: Backward, band: float) -> Tensor:
        size = x.abs().flatten()
        count = max(1, round(share * size.numel())) if size.numel() else 0
        first = size.sort(descending=True, stable=True).indices[:count]
        keep = torch.zeros_like(size, dtype=torch.bool)
        keep[first] = True
        threshold = size[first[-1]] if count else size.sum()
        passes = {
            "kept": keep, "all": torch.ones_like(keep), "near": keep | (size > band * threshold),
            "banded": keep | (size <= band * threshold),
        }[backward]  # fmt: skip
        ctx.save_for_backward(passes.reshape(x.shape))
        kept: Tensor = torch.where(keep.reshape(x.shape), x, 0)
        return kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (passes,) = ctx.saved_tensors
        return grads[0] * passes, None, None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.factor, None
