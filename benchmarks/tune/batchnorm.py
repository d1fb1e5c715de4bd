"""Batch norms whose statistics are taken again after compression, beside those that keep the old ones.

Networks with batch norms are calibrated on 128 training images and measured on test images. `A < B` holds where
the 95 % interval of the paired difference of their losses is below 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bench import Bench
from benchmarks.paired import COMPARED, compare
from laconic.method import Method
from laconic.prune.exactobs import ExactOBS
from laconic.prune.magnitude import Magnitude
from laconic.prune.sparsegpt import SparseGPT
from laconic.quantize.gptq import GPTQ
from laconic.quantize.requant import REQuant
from laconic.quantize.rtn import RTN
from laconic.tune.batchnorm import BatchNormStats

ALONE: Mapping[str, Sequence[Method]] = {
    "magnitude 50 %": [Magnitude(0.5)], "magnitude 70 %": [Magnitude(0.7)], "sparsegpt 70 %": [SparseGPT(0.7)],
    "exactobs 70 %": [ExactOBS(0.7)], "rtn4 row": [RTN(4, "row")], "rtn3 row": [RTN(3, "row")],
    "gptq3 row": [GPTQ(3, "row")], "requant3 row": [REQuant(3)], "requant3 tensor": [REQuant(3, "tensor")],
}  # fmt: skip
CHAINS = ALONE | {f"{la}, batchnorm": [*c, BatchNormStats()] for la, c in ALONE.items()}
CLAIMS = tuple((f"{label}, batchnorm", label) for label in ALONE)


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.models().items():
        if name.startswith("resnet"):
            rows += compare(bench, name, model, CHAINS, CLAIMS)
    bench.table("batch norms taken again, and not", COMPARED, rows)
