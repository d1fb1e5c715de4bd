"""Which models are of one family, told from few of their bits.

The distance of two models is how many bits of a weight differ, in the mean (ZipLLM, Wang et al., 2025, arXiv
2505.06252): 16-bit weights of models trained apart differ in about 6, those of a fine-tune from its base in 0.3 to 3.
A sketch is the same few weights of every model whose tensors have the same names and shapes, of each the sign, the
exponent and the first seven bits of the mantissa: whatever the dtype, what bf16 has.
"""

from collections.abc import Iterable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from blake3 import blake3

from laconic.coding.planes import LAYOUTS
from laconic.store.parts import Part

WEIGHTS = 1 << 13  # of a sketch, 16 bits each: 16 kB; the distance is then known to 0.05
SHIFTS = {"BF16": 0, "F16": 3, "F32": 16, "C64": 16, "F64": 45}  # bits behind the seven
RUN = 16  # weights that are read together
REACH = 1 << 16  # weights of a tensor from which some are taken: a tensor may grow behind them
FAMILY = 4.0  # bits of a weight; models that differ in fewer are of one family


class Tensor(NamedTuple):
    """A float tensor of a model, and the open file that it is in."""

    part: Part
    file: BinaryIO


def signature(parts: Iterable[Part]) -> bytes:
    """Of the names, dtypes and shapes of a model's tensors; 32 bytes, none if it has no floats.

    How long the first dimension is does not count: embeddings grow.
    """
    rows = sorted(
        f"{part.name} {part.dtype} {part.shape[1:]} {len(part.shape)}"
        for part in parts
        if _floats(part)
    )
    return blake3("\n".join(rows).encode()).digest() if rows else b""


def sketch(tensors: Sequence[Tensor]) -> bytes:
    """Some weights of a model: of all its float tensors, larger ones more, at places that hang on names and shapes."""
    found = sorted((t for t in tensors if _floats(t.part)), key=lambda t: t.part.name or "")
    reach = [
        min(REACH, 1 << _count(t.part).bit_length() - 1) for t in found
    ]  # not changed by some rows
    total = max(1, sum(reach))
    words = []
    for tensor, weights in zip(found, reach):
        item, shift = LAYOUTS[tensor.part.dtype].itemsize, SHIFTS[tensor.part.dtype]
        seed = blake3(f"{tensor.part.name} {tensor.part.shape[1:]}".encode()).digest(8)
        generator = np.random.default_rng(int.from_bytes(seed, "little"))
        runs = max(1, round(WEIGHTS / RUN * weights / total))
        for place in generator.random(runs).tolist():
            tensor.file.seek(tensor.part.start + int(place * max(1, weights - RUN)) * item)
            raw = np.frombuffer(tensor.file.read(min(RUN, weights) * item), f"<u{item}")
            words.append(_shortened(raw, 8 * item, shift).tobytes())
    return b"".join(words)


def distance(a: bytes, b: bytes) -> float:
    """Bits in which a weight of two sketches differs, in the mean; infinite if they are of unequal lengths.

    Example:
        >>> distance(bytes(4), bytes([0b11, 0, 0, 0b1]))
        1.5
    """
    if len(a) != len(b) or not a:
        return float("inf")
    differing = np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8))
    return 2 * float(differing.sum()) / len(a)


def _shortened(raw: np.ndarray, bits: int, shift: int) -> np.ndarray:
    """Sign, what of the exponent fits, and seven bits of the mantissa."""
    kind = raw.dtype.type
    sign = raw >> kind(bits - 1)
    body = (raw & kind((1 << (bits - 1)) - 1)) >> kind(shift) & kind(0x7FFF)
    short: np.ndarray = (body | sign << kind(15)).astype("<u2")
    return short


def _floats(part: Part) -> bool:
    return part.name is not None and LAYOUTS[part.dtype].rotate and part.size > 0


def _count(part: Part) -> int:
    return part.size // LAYOUTS[part.dtype].itemsize
