"""In which precision a model is trained: fp32, or bf16 products where the processor is fast at them."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from laconic.errors import UsageError

Precision = Literal["fp32", "bf16", "auto"]
FAST = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # features of processors, x86 and Arm


def resolve(precision: Precision, device: torch.device) -> Precision:
    """`fp32` or `bf16`; for `auto` whichever is faster on `device`.

    Raises:
        UsageError: an unknown precision.

    Example:
        >>> resolve("fp32", torch.device("cpu"))
        'fp32'
    """
    if precision == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"precision is 'fp32', 'bf16' or 'auto', found {precision!r}")
    return precision


def fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; where that is unknown, no."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(features.get(name) for name in FAST)


def products(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Inside, matrix products run in `precision`; parameters keep their own."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
