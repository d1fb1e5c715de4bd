"""fp32 that is fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Convolutions in fp32 are not rounded to TF32 inside, as cuDNN does by default.

    Example:
        >>> with exact_products():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
