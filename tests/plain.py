"""Kernels as plain Python, where an index beyond an array is an error and coverage sees each line.

Numpy keeps the width of its integers where numba widens them, so what a kernel adds up stays small.
"""

import importlib.util
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numba import extending

from laconic.coding import memory
from laconic.tensors import compressed


def plain(name: str, **instead: Any) -> ModuleType:
    """A copy of the module `name` whose kernels are not compiled; `instead` replaces its names."""
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba, "njit", _uncompiled)
        patch.setattr(extending, "overload", _uncompiled)
        patch.setattr(memory, "load_u64", load_u64)
        patch.setattr(memory, "store_u64", store_u64)
        patch.setattr(compressed, "register_kind", lambda _: None)  # the kinds have their classes
        spec.loader.exec_module(module)
    vars(module).update(instead)
    return module


def load_u64(array: np.ndarray, offset: int) -> np.uint64:
    eight = array[int(offset) : int(offset) + 8]
    assert len(eight) == 8, "a load beyond the array"
    return np.uint64(int.from_bytes(eight.tobytes(), "little"))


def store_u64(array: np.ndarray, offset: int, value: np.uint64) -> None:
    assert 0 <= offset <= len(array) - 8, "a store beyond the array"
    array[int(offset) : int(offset) + 8] = np.frombuffer(np.uint64(value).tobytes(), np.uint8)


def _uncompiled(*_: Any, **__: Any) -> Any:
    return lambda function: function


def check_same(
    module: ModuleType, kernel: str, function: Callable[[], Iterable[Any]], **instead: Any
) -> None:
    """Checks that `function` returns the same tensors when a kernel of `module` is Python."""
    python, calls = getattr(plain(module.__name__, **instead), kernel), []

    def watched(*arguments: Any) -> Any:
        calls.append(kernel)
        return python(*arguments)

    compiled = list(function())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, kernel, watched)
        found = list(function())
    assert calls
    for one, other in zip(compiled, found, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-6)
