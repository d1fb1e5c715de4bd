"""`Coded`: what the formats have in common that decode row by row from packed codes."""

from abc import abstractmethod
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from laconic.tensors.compressed import CompressedTensor, checked_index
from laconic.tensors.packing import matrix_shape

FEW = 4  # inputs up to which a kernel that decodes as it multiplies beats decoding before
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of inputs


class Coded(CompressedTensor):
    """Base of formats that keep codes packed: decoded by a kernel on a CPU, by torch elsewhere.

    A subclass gives both decoders of the weight as a matrix (R, C); the two must agree to the bit.

    Attributes:
        bits: of a code.
    """

    bits: int
    multiplies_dense = True

    @property
    def code_per_weight(self) -> bool:
        """Whether its state has an array `codes` with one code for each weight."""
        return True

    @abstractmethod
    def _dense_by_kernel(self, index: np.ndarray) -> np.ndarray:
        """The rows `index` (n,) int64 of the matrix, (n, C) float32."""

    @abstractmethod
    def _dense_by_torch(self) -> Tensor:
        """The matrix (R, C) float32, on the device of the codes."""

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """`x @ W.T + bias` (N, R) from the codes for a few x (N, C) on a GPU; None where no kernel can."""
        return None

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`; of a few inputs on a GPU from the codes, summed in float32."""
        inputs = x.shape[:-1].numel()
        grad = torch.is_grad_enabled() and x.requires_grad
        few = 0 < inputs <= FEW and self.numel and x.dtype in KERNEL_DTYPES and not grad
        if few and x.device.type == "cuda" and _has_kernels():
            y = self._product(x.reshape(inputs, self.shape[1]).contiguous(), bias)
            if y is not None:
                return y.reshape(*x.shape[:-1], self.shape[0])
        return super().matmul(x, bias)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        if self.device.type == "cpu":
            index = np.arange(matrix_shape(self.shape)[0])
            value = torch.from_numpy(self._dense_by_kernel(index))
        else:
            value = self._dense_by_torch()
        return value.reshape(self.shape).to(dtype or self.dtype)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if self.device.type != "cpu":
            return self.dense(dtype)[index]
        flat = checked_index(index, matrix_shape(self.shape)[0]).reshape(-1).numpy()
        value = torch.from_numpy(self._dense_by_kernel(flat))
        return value.reshape((*index.shape, *self.shape[1:])).to(dtype or self.dtype)


@cache
def _has_kernels() -> bool:
    """Whether triton is installed, which CUDA builds of torch bring; looked for once."""
    return find_spec("triton") is not None
