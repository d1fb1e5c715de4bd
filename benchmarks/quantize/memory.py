"""Formats at 2 to 3 bits in memory: codebooks beside grids of as many resident bits, and what is added to grids.

Every language model is calibrated on the first 128 windows of text/train.txt and measured on
text/valid.txt. `A < B` holds where the 95 % interval of the paired difference of their losses is below 0.
Stored bits stand beside: there entropy-coded GPTQ is the bar, which `quantize/ecgptq` measures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bench import Bench
from benchmarks.paired import COMPARED, compare
from laconic.method import Method
from laconic.prune.magnitude import Magnitude
from laconic.prune.nowag import NoWagPruner
from laconic.prune.sparsegpt import SparseGPT
from laconic.prune.wanda import Wanda
from laconic.quantize.alphatuning import BCQ
from laconic.quantize.aqlm import AQLM
from laconic.quantize.eora import EoRA
from laconic.quantize.gptq import GPTQ
from laconic.quantize.gptvq import GPTVQ
from laconic.quantize.nowag import NoWagVQ
from laconic.quantize.obr import OBR
from laconic.quantize.rtn import RTN
from laconic.tune.blocktune import BlockTune

FOUR_BITS = RTN(4, "row")
#: Groups of 64 unless the name says otherwise.
CHAINS: Mapping[str, Sequence[Method]] = {
    "rtn2": [RTN(2)], "rtn3": [RTN(3)], "gptq2": [GPTQ(2)], "gptq3": [GPTQ(3)], "gptq3 row": [GPTQ(3, "row")],
    "gptvq2 1d": [GPTVQ(2, 1)], "gptvq2 2d": [GPTVQ(2, 2)], "gptvq2 4d": [GPTVQ(2, 4)],
    "gptvq2 2d, no update": [GPTVQ(2, 2, update=False)], "gptvq2 4d, diagonal": [GPTVQ(2, 4, exact=False)],
    "gptvq3 2d": [GPTVQ(3, 2)],
    "aqlm 1x8 g4": [AQLM(1, 8, 4)], "aqlm 2x8 g8": [AQLM(2, 8, 8)], "aqlm 3x8 g8": [AQLM(3, 8, 8)],
    "aqlm 2x8 g8, blocktune": [AQLM(2, 8, 8), BlockTune()], "gptvq2 4d, blocktune": [GPTVQ(2, 4), BlockTune()],
    "nowag-vq 2": [NoWagVQ(2)], "k-means 2": [NoWagVQ(2, normalise=False)],
    "bcq2": [BCQ(2)], "bcq3": [BCQ(3)],
    "rtn3, eora 32": [RTN(3), EoRA(32)], "wanda 2:4": [Wanda(pattern="2:4")],
    "wanda 2:4, eora 32": [Wanda(pattern="2:4"), EoRA(32)],
    "wanda 50 %": [Wanda(0.5)], "nowag-p 50 %": [NoWagPruner(0.5)], "magnitude 50 %": [Magnitude(0.5)],
    "obr int4 50 %": [OBR(4)], "obr int4 50 %, paper": [OBR(4, order="natural", alpha=0.5, rescale=False)],
    "sparsegpt 50 %, gptq4": [SparseGPT(0.5), GPTQ(4, "row")], "wanda 50 %, gptq4": [Wanda(0.5), GPTQ(4, "row")],
    "wanda 50 %, rtn4": [Wanda(0.5), FOUR_BITS],
}  # fmt: skip
CLAIMS = (
    ("gptvq2 1d", "gptq2"), ("gptvq2 2d", "gptvq2 1d"), ("gptvq2 4d", "gptvq2 2d"),
    ("gptvq2 2d", "gptvq2 2d, no update"), ("gptvq2 4d", "gptvq2 4d, diagonal"), ("gptvq3 2d", "gptq3"),
    ("aqlm 1x8 g4", "gptq2"), ("aqlm 2x8 g8, blocktune", "gptvq2 2d"), ("aqlm 2x8 g8, blocktune", "aqlm 2x8 g8"),
    ("gptvq2 4d, blocktune", "gptvq2 4d"),
    ("nowag-vq 2", "k-means 2"), ("bcq3", "rtn3"),
    ("rtn3, eora 32", "rtn3"), ("wanda 2:4, eora 32", "wanda 2:4"), ("nowag-p 50 %", "magnitude 50 %"),
    ("obr int4 50 %", "sparsegpt 50 %, gptq4"), ("obr int4 50 %", "wanda 50 %, gptq4"),
    ("obr int4 50 %", "obr int4 50 %, paper"), ("wanda 50 %, gptq4", "wanda 50 %, rtn4"),
)  # fmt: skip
MINUTES = 5


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.language_models().items():
        found = compare(bench, name, model, CHAINS, CLAIMS)
        rows += found
        slowest = max(found, key=lambda row: row[-1])
        bench.check(
            f"{name}: each in less than {MINUTES} minutes", slowest[-1] < 60 * MINUTES,
            slowest=slowest[1], seconds=slowest[-1],
        )  # fmt: skip
    bench.table("codebooks, sums and zeros, by what they take in memory", COMPARED, rows)
