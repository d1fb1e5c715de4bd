"""What the functions here ask of their arguments, said in one way."""

import torch
from torch import Tensor

from laconic.errors import BadWeights, UsageError


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises `BadWeights` if `tensor` holds NaN or infinity."""
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise BadWeights(f"{name} holds NaN or infinity; look at the layer that it comes from")


def check_shape(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """Raises `UsageError` unless `tensor` has `shape`; a word stands for any size above zero."""
    sizes = tensor.shape
    fits = len(sizes) == len(shape) and all(
        size >= 1 if isinstance(want, str) else size == want for size, want in zip(sizes, shape)
    )
    if not fits:
        want = ", ".join(map(str, shape))
        raise UsageError(f"{name} must have the shape ({want}), found {tuple(sizes)}")


def check_square(name: str, tensor: Tensor, size: int | None = None) -> None:
    """Raises `UsageError` unless the last two dimensions of `tensor` are equal (and `size`)."""
    sizes = tensor.shape
    if len(sizes) < 2 or sizes[-1] != sizes[-2] or sizes[-1] != (size or sizes[-1]):
        want = f"{size} x {size}" if size else "square"
        raise UsageError(f"{name} must be {want} in its last dimensions, found {tuple(sizes)}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises `UsageError` unless `value` is a number of at least `least`."""
    if not value >= least:
        raise UsageError(f"{name} must be at least {least}, found {value!r}")
