"""Compressed tensors at rest: one checksummed blob each, every array entropy coded if that pays.

    blob = compact frame: header (JSON) | one section for each array, depth first

A blob holds a weight and, where a module has them, its input transform and activation quantizer.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from laconic.coding import blocks
from laconic.coding.framing import Compact, Section
from laconic.errors import CorruptFile
from laconic.tensors import quantizer as quantizers
from laconic.tensors.compressed import (
    FAULTS,
    CompressedTensor,
    InputTransform,
    State,
    Stateful,
    from_state,
)
from laconic.tensors.dtypes import BY_NAME, from_raw, name_of, to_raw
from laconic.tensors.quantizer import Quantizer

CODEC = 1
T = TypeVar("T", bound=Stateful)
HEADER, RAW, BLOCK = range(3)  # section types
CODES = (torch.uint8, torch.uint16)
WORTHWHILE_CODES = 1.0  # codes stand unpacked, so that even full ones shrink


@dataclass(frozen=True)
class Record:
    """What one slot of a module stores.

    Attributes:
        weight: the value.
        transform: applied to the module's input, if any.
        activation: quantizer of the module's (transformed) input, if any.
    """

    weight: CompressedTensor
    transform: InputTransform | None = None
    activation: Quantizer[Any] | None = None

    @property
    def resident_bytes(self) -> int:
        """Bytes that weight and transform occupy while computing."""
        moved = 0 if self.transform is None else self.transform.resident_bytes
        return self.weight.resident_bytes + moved

    @property
    def format(self) -> str:
        """What it is, for people: `int4 g32 behind hadamard, int8 inputs`."""
        before = "" if self.transform is None else f" behind {self.transform.kind}"
        if self.activation is None:
            return self.weight.format + before
        settings = self.activation.settings()
        inputs = settings.get("format") or f"{settings['kind']}{settings.get('bits', '')}"
        return f"{self.weight.format}{before}, {inputs} inputs"


def encode(value: CompressedTensor | Record) -> bytes:
    """The blob of a tensor or record; equal values give equal bytes."""
    record = value if isinstance(value, Record) else Record(value)
    sections: list[Section] = []
    header: dict[str, Any] = {"weight": _describe(record.weight.state(), sections)}
    if record.transform is not None:
        header["transform"] = _describe(record.transform.state(), sections)
    if record.activation is not None:
        header["activation"] = record.activation.settings()
    text = json.dumps(header, separators=(",", ":")).encode()
    return Compact(CODEC, (Section(HEADER, text), *sections)).to_bytes()


def decode_record(blob: bytes | memoryview | np.ndarray) -> Record:
    """Inverse of `encode`.

    Raises:
        CorruptFile: the blob is damaged, of another kind, or from a newer laconic.
    """
    frame = Compact.from_bytes(memoryview(blob))  # type: ignore[arg-type]
    if frame.codec != CODEC or not frame.sections or frame.sections[0].type != HEADER:
        raise CorruptFile("not a compressed tensor: the frame is of another codec")
    try:
        header = json.loads(bytes(frame.sections[0].payload))
        sections = iter(frame.sections[1:])
        weight = from_state(_rebuild(header["weight"], sections))
        transform = None
        if "transform" in header:
            transform = from_state(_rebuild(header["transform"], sections))
        activation = None
        if "activation" in header:
            activation = quantizers.from_settings(header["activation"])
    except (*FAULTS, StopIteration) as error:
        raise CorruptFile(f"the header of a compressed tensor is damaged: {error!r}") from error
    return Record(
        _expect(weight, CompressedTensor),  # type: ignore[type-abstract]
        None if transform is None else _expect(transform, InputTransform),  # type: ignore[type-abstract]
        activation,
    )


def decode(blob: bytes | memoryview | np.ndarray) -> CompressedTensor:
    """The weight of the record in `blob`."""
    return decode_record(blob).weight


def _expect(value: Stateful, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise CorruptFile(f"a {value.kind} stands where a {kind.__name__} is expected")
    return value


def _describe(state: State, sections: list[Section]) -> dict[str, Any]:
    """The header of `state`; its arrays are appended to `sections`."""
    arrays = {}
    for name, tensor in state.arrays.items():
        arrays[name] = [name_of(tensor.dtype), list(tensor.shape)]
        sections.append(_encode_array(tensor))
    header: dict[str, Any] = {"kind": state.kind, "meta": state.meta, "arrays": arrays}
    if state.parts:
        header["parts"] = {name: _describe(part, sections) for name, part in state.parts.items()}
    return header


def _rebuild(header: dict[str, Any], sections: Iterator[Section]) -> State:
    arrays = {
        name: _decode_array(next(sections), dtype, tuple(shape))
        for name, (dtype, shape) in header["arrays"].items()
    }
    parts = {name: _rebuild(part, sections) for name, part in header.get("parts", {}).items()}
    return State(header["kind"], header["meta"], arrays, parts)


def _encode_array(tensor: Tensor) -> Section:
    raw = to_raw(tensor)
    worthwhile = WORTHWHILE_CODES if tensor.dtype in CODES else blocks.WORTHWHILE
    coded = blocks.compress(raw, name_of(tensor.dtype), engine="rans", worthwhile=worthwhile)
    return Section(BLOCK, coded.data) if len(coded) < len(raw) else Section(RAW, raw.data)


def _decode_array(section: Section, dtype: str, shape: tuple[int, ...]) -> Tensor:
    if dtype not in BY_NAME or any(type(n) is not int or n < 0 for n in shape):
        raise CorruptFile(f"an array of dtype {dtype!r} and shape {shape} cannot be")
    size = math.prod(shape) * BY_NAME[dtype].itemsize
    if section.type == BLOCK:
        raw = blocks.decompress(section.payload, expect=size)
    else:
        raw = np.frombuffer(section.payload, np.uint8)
    return from_raw(raw, dtype, shape)
