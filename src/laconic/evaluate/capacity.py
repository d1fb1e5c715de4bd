"""How much of Gaussian noise a format keeps: one number by which formats can be compared without a model.

The squared error that a format leaves of N(0, 1), as a share, is its GMSE. As the best that b bits can do is
4^-b, `log_1/4 GMSE` says how many bits its values are worth (Panferov et al., 2025, arXiv 2506.01863).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, Observation
from laconic.errors import UsageError
from laconic.method import LayerMethod
from laconic.models.layout import Layer
from laconic.spelling import build
from laconic.tensors import Dense
from laconic.tensors.stored import Record, encode

ROWS, COLUMNS = 1024, 1024
DEFAULT = (
    "rtn:bits=2,group=row", "rtn:bits=3,group=row", "rtn:bits=4,group=row", "rtn:bits=4,group=32", "rtn:bits=8,group=row",
    "fp:format=mxfp4", "fp:format=nvfp4", "bcq:bits=2", "bcq:bits=3",
    "gptvq:bits=2,dim=2", "gptvq:bits=2,dim=4", "ecgptq:bits=2", "ecgptq:bits=3", "ecgptq:bits=4",
    "magnitude:sparsity=0.5", "magnitude:pattern=2:4", "magnitude:sparsity=0.5+rtn:bits=4",
)  # fmt: skip


@dataclass(frozen=True)
class Capacity:
    """What a format keeps of Gaussian noise, and in how many bits.

    Attributes:
        format: as it was spelled.
        gmse: E||x - R(x)||^2 / ||x||^2.
        capacity_bits: log_1/4 of it: the bits that an ideal code would take for that error.
        stored_bits: of a value in a file, entropy coded, with all side information.
        resident_bits: of a value in memory.
        efficiency: capacity_bits / stored_bits, at most 1.
        resident_efficiency: capacity_bits / resident_bits.
    """

    format: str
    gmse: float
    capacity_bits: float
    stored_bits: float
    resident_bits: float
    efficiency: float
    resident_efficiency: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def capacity(spec: str, *, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Capacity:
    """Measures a method, or several in a chain, on a matrix of Gaussian noise.

    Half of the rows are the others with their signs changed, so that no format gains or loses by a mean.
    Methods that need data are given inputs of which all count alike.

    Args:
        spec: methods with settings, `rtn:bits=4,group=32`, the links of a chain joined by `+`.
        rows: even.
        columns: at least 1.
        seed: of the noise.

    Raises:
        UsageError: an unknown method or setting, or one that does not see single weights.

    Example:
        >>> capacity("rtn:bits=8", rows=64, columns=64).capacity_bits > 6
        True
    """
    if rows < 2 or rows % 2 or columns < 1:
        raise UsageError(f"noise has an even number of rows and columns, found {rows} x {columns}")
    methods = chain(spec)
    half = torch.randn(rows // 2, columns, generator=torch.Generator().manual_seed(seed))
    noise = torch.cat([half, -half])
    layer = Layer("noise", "noise", "weight", noise.shape, "linear")
    record = Record(Dense(noise.to(torch.bfloat16)))
    noise = record.weight.dense(torch.float32)
    for method in methods:
        record = method.revise(noise, record, _all_alike(method, layer))
    kept = record.weight.dense(torch.float32)
    if record.transform is not None:
        kept = record.transform.unfold(kept)
    gmse = float((noise - kept).double().square().sum() / noise.double().square().sum())
    stored = 8 * len(encode(record)) / noise.numel()
    resident = 8 * record.resident_bytes / noise.numel()
    bits = math.log(gmse) / math.log(0.25) if gmse > 0 else math.inf
    return Capacity(spec, gmse, bits, stored, resident, bits / stored, bits / resident)


def chain(spec: str) -> Sequence[LayerMethod]:
    """The methods that `spec` joins by `+`."""
    methods = [build(part.strip()) for part in spec.split("+")]
    for method in methods:
        if not isinstance(method, LayerMethod):
            raise UsageError(f"{type(method).__name__} does not compress single weights")
    return methods


def _all_alike(method: LayerMethod, layer: Layer) -> LayerStats:
    """What `method` wants to know of inputs whose second moment is the identity."""
    width = layer.shape[1]
    x = torch.eye(width) * width**0.5
    seen = Observation(x, _outputs(layer, width), reference=x)
    return LayerStats(layer, {s: Collected(s).update(seen) for s in method.wants})


def _outputs(layer: Layer, width: int) -> Tensor:
    return torch.zeros(width, layer.shape[0])
