"""What errors of weights do to outputs."""

import torch
from torch import Tensor

ERRORS = torch.float64  # errors are compared where they nearly agree


def row_errors(off: Tensor, moment: Tensor) -> Tensor:
    """What the output of each row is off by, squared: d H d^T for each row d of `off`, in float64.

    Args:
        off: (R, C), the error of the weights.
        moment: H (C, C), second moment of the inputs.

    Returns:
        (R,) float64.

    Example:
        >>> row_errors(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([13.], dtype=torch.float64)
    """
    d = off.to(ERRORS)
    return ((d @ moment.to(ERRORS)) * d).sum(dim=1)
