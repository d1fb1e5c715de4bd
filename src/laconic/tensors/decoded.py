"""Weights decoded once for many multiplications, where there is memory for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.dense import Dense
from laconic.tensors.masked import Masked
from laconic.tensors.modules import CompressedModule
from laconic.tensors.stacked import Stacked

PRECISION = torch.float32


def decoded(value: CompressedTensor) -> CompressedTensor:
    """What multiplies as `value` does in float32, with what is decoded on the way decoded already.

    Factors, transforms and whole channels that were dropped stay what they are.

    Example:
        >>> from laconic.tensors import IntQuantizer
        >>> decoded(IntQuantizer().quantize(torch.eye(2))).format
        'float32'
    """
    if isinstance(value, Stacked):
        return Stacked(tuple(Dense(value.slice(e, PRECISION)) for e in range(value.shape[0])))
    plain = type(value).matmul in (CompressedTensor.matmul, Dense.matmul)
    if plain or value.multiplies_dense or (isinstance(value, Masked) and not value.skips):
        return Dense(value.dense(PRECISION))
    named = {f.name: getattr(value, f.name) for f in fields(value)}  # type: ignore[arg-type]
    return replace(value, **{name: _inside(part) for name, part in named.items()})  # type: ignore[type-var]


def decode_slots(module: CompressedModule) -> None:
    """Has a module multiply by decoded weights until its records change."""
    module.operands = {slot: decoded(record.weight) for slot, record in module.records.items()}


def decoded_bytes(module: nn.Module) -> int:
    """What the decoded weights of all compressed modules in `module` would take."""
    values = [
        v for m in module.modules() if isinstance(m, CompressedModule) for v in m.values.values()
    ]
    return sum(v.shape.numel() for v in values) * PRECISION.itemsize


@contextmanager
def kept_decoded(module: nn.Module, most: int) -> Iterator[None]:
    """While inside, compressed modules in `module` multiply by weights that were decoded once.

    Args:
        module: any; its records must not change while inside.
        most: bytes that they may take; where they would take more, each multiplication decodes.
    """
    found = [m for m in module.modules() if isinstance(m, CompressedModule) and m.records]
    if decoded_bytes(module) > most:
        found = []
    try:
        for each in found:
            decode_slots(each)
        yield
    finally:
        for each in found:
            each.operands = {}


def _inside(part: Any) -> Any:
    if isinstance(part, CompressedTensor):
        return decoded(part)
    if isinstance(part, tuple):
        return tuple(_inside(each) for each in part)
    return part
