"""Dtypes by their safetensors names, and tensors as raw bytes (numpy knows no bfloat16)."""

import math

import numpy as np
import torch
from torch import Tensor

from laconic.errors import CorruptFile, UnsupportedModel

BY_NAME = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in BY_NAME.items()}


def name_of(dtype: torch.dtype) -> str:
    """The safetensors name of `dtype`."""
    if dtype not in NAMES:
        raise UnsupportedModel(f"dtype {dtype} has no safetensors name")
    return NAMES[dtype]


def to_raw(tensor: Tensor) -> np.ndarray:
    """The bytes of `tensor`, (nbytes,) uint8; shares memory with it where it is contiguous on CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: np.ndarray = flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
    return raw


def from_raw(raw: np.ndarray, dtype: str, shape: tuple[int, ...], *, copy: bool = True) -> Tensor:
    """The tensor of `dtype` (a safetensors name) and `shape` whose bytes are `raw`.

    It owns its memory; with `copy=False` it takes over the memory of `raw`.

    Raises:
        CorruptFile: the dtype is unknown or `raw` has not the bytes that the shape needs.
    """
    if dtype not in BY_NAME:
        raise CorruptFile(f"unknown dtype {dtype!r}")
    count = math.prod(shape)
    if count * BY_NAME[dtype].itemsize != raw.size:
        raise CorruptFile(
            f"a {dtype} tensor of shape {list(shape)} takes {count * BY_NAME[dtype].itemsize} bytes, "
            f"found {raw.size}"
        )
    if count == 0:
        try:
            return torch.empty(shape, dtype=BY_NAME[dtype])
        except (RuntimeError, TypeError) as error:
            raise CorruptFile(f"no tensor has the shape {list(shape)}") from error
    return torch.from_numpy(raw.copy() if copy else raw).view(BY_NAME[dtype]).reshape(shape)
