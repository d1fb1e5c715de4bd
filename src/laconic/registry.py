"""Everything that has a name on the command line, by name; importing this loads nothing heavy."""

import importlib
from dataclasses import dataclass
from enum import Enum
from typing import Any

from laconic.errors import UsageError, did_you_mean


class Kind(Enum):
    """What kinds of things have names; each kind has a contract suite in `tests/contracts`."""

    METHOD = "method"
    QUANTIZER = "quantizer"
    CODEC = "codec"
    PREDICTOR = "predictor"
    STORE = "store"
    EVICTOR = "evictor"
    COMPRESSOR = "compressor"
    STUDY = "study"


@dataclass(frozen=True)
class Entry:
    """A registered thing.

    Attributes:
        kind: see `Kind`.
        path: `module:class`.
        summary: one line; the first of the class's docstring, checked by a test.
    """

    kind: Kind
    path: str
    summary: str

    def load(self) -> Any:
        """The class; imports its module."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


ENTRIES: dict[str, Entry] = {
    "rtn": Entry(
        Kind.METHOD,
        "laconic.quantize.rtn:RTN",
        "Rounds every weight to the nearest point of a uniform grid; needs no data.",
    ),
    "fp": Entry(
        Kind.METHOD,
        "laconic.quantize.floats:Floats",
        "Rounds every weight to the nearest float of 4, 6 or 8 bits with shared scales; needs no data.",
    ),
    "gptq-fp": Entry(
        Kind.METHOD,
        "laconic.quantize.floats:GPTQFloats",
        "Rounds to floats column by column, later columns making up for the error of earlier ones.",
    ),
    "bcq": Entry(
        Kind.METHOD,
        "laconic.quantize.alphatuning:BCQ",
        "Approximates each group of a row by a sum of scaled sign vectors (binary coding); needs no data.",
    ),
    "requant": Entry(
        Kind.METHOD,
        "laconic.quantize.requant:REQuant",
        "Rounds to levels k^(1/p) of a range that golden-section search finds for each row or group.",
    ),
    "adaround": Entry(
        Kind.METHOD,
        "laconic.quantize.adaround:AdaRound",
        "Rounds every weight up or down, whichever, learned for a row together, changes its outputs least.",
    ),
    "int-factors": Entry(
        Kind.METHOD,
        "laconic.quantize.mlorq:QuantizedFactors",
        "Replaces every weight by two factors of integers, whose rounding is learned together.",
    ),
    "mlorq": Entry(
        Kind.METHOD,
        "laconic.quantize.mlorq:MLoRQ",
        "Chooses for each layer b bits, or two factors of a rank with bits of their own, under one budget.",
    ),
    "blocktune": Entry(
        Kind.METHOD,
        "laconic.tune.blocktune:BlockTune",
        "Trains what is free in each block, the codes of uniform grids too, until it puts out what it should.",
    ),
    "batchnorm": Entry(
        Kind.METHOD,
        "laconic.tune.batchnorm:BatchNormStats",
        "Takes means and variances of batch norms again, from what comes through the compressed layers.",
    ),
    "mixed": Entry(
        Kind.METHOD,
        "laconic.quantize.mixed:Mixed",
        "Gives every layer the format, of several methods', that loses least within a budget.",
    ),
    "evopress": Entry(
        Kind.METHOD,
        "laconic.allocate.evopress:EvoPress",
        "Searches the strength of every layer for the least loss of the whole model at given bits.",
    ),
    "evopress-depth": Entry(
        Kind.METHOD,
        "laconic.allocate.evopress:EvoPressDepth",
        "Searches which attentions and MLPs, or blocks, a model misses least, and drops them.",
    ),
    "gptq": Entry(
        Kind.METHOD,
        "laconic.quantize.gptq:GPTQ",
        "Rounds to a uniform grid column by column, later columns making up for the error of earlier ones.",
    ),
    "obq": Entry(
        Kind.METHOD,
        "laconic.quantize.obc:OBQ",
        "Rounds each row weight by weight, always the one that costs least; the others make up for it exactly.",
    ),
    "exactobs": Entry(
        Kind.METHOD,
        "laconic.prune.exactobs:ExactOBS",
        "Zeros each row weight by weight, always the one that costs least; the others make up for it exactly.",
    ),
    "gptvq": Entry(
        Kind.METHOD,
        "laconic.quantize.gptvq:GPTVQ",
        "Rounds a few columns at a time to vectors of small codebooks, later columns making up for the error.",
    ),
    "aqlm": Entry(
        Kind.METHOD,
        "laconic.quantize.aqlm:AQLM",
        "Makes each run of a row's weights the sum of one vector from each of several learned codebooks.",
    ),
    "nowag-vq": Entry(
        Kind.METHOD,
        "laconic.quantize.nowag:NoWagVQ",
        "Rounds neighbouring columns of the normalised weight to the nearest vector of one codebook.",
    ),
    "nowag-p": Entry(
        Kind.METHOD,
        "laconic.prune.nowag:NoWagPruner",
        "Zeros the weights whose magnitude, divided by the lengths of column and row, times the input's is least.",
    ),
    "eora": Entry(
        Kind.METHOD,
        "laconic.quantize.eora:EoRA",
        "Adds factors of low rank to what a method before it left, which give back most of the outputs.",
    ),
    "obr": Entry(
        Kind.METHOD,
        "laconic.quantize.obr:OBR",
        "Zeros half of each row and rounds the rest, the errors of both taken up in closed form by what can move.",
    ),
    "magnitude": Entry(
        Kind.METHOD,
        "laconic.prune.magnitude:Magnitude",
        "Zeros the weights of least magnitude; needs no data.",
    ),
    "wanda": Entry(
        Kind.METHOD,
        "laconic.prune.wanda:Wanda",
        "Zeros the weights whose magnitude times the norm of their input is least in each row.",
    ),
    "sparsegpt": Entry(
        Kind.METHOD,
        "laconic.prune.sparsegpt:SparseGPT",
        "Zeros the weights that cost least column by column, later columns making up for each of them.",
    ),
    "random": Entry(
        Kind.METHOD,
        "laconic.prune.random:Random",
        "Zeros weights at random, the same ones on every machine: a control for other pruners.",
    ),
    "svd": Entry(
        Kind.METHOD,
        "laconic.factorize.svd:SVD",
        "Replaces every weight by two factors of low rank that change its outputs least.",
    ),
    "awq": Entry(
        Kind.METHOD,
        "laconic.quantize.awq:AWQ",
        "Scales input channels by a power of their size, so that what matters is rounded more finely.",
    ),
    "smoothquant": Entry(
        Kind.METHOD,
        "laconic.quantize.smoothquant:SmoothQuant",
        "Scales channels until inputs and weights are equally hard to round, and rounds both to integers.",
    ),
    "hadamard": Entry(
        Kind.METHOD,
        "laconic.quantize.hadamard:Hadamard",
        "Rotates inputs and weights by a randomised Hadamard matrix, for what quantizes them next.",
    ),
    "wush": Entry(
        Kind.METHOD,
        "laconic.quantize.wush:WUSH",
        "Transforms inputs and weights block by block until both are equally easy to round, for what rounds them next.",
    ),
    "activations": Entry(
        Kind.METHOD,
        "laconic.quantize.activations:Activations",
        "Rounds the inputs of every layer as they come; weights stay as the chain has them.",
    ),
    "bct": Entry(
        Kind.METHOD,
        "laconic.quantize.bct:BCT",
        "Rounds all of a transformer to integers in blocks with shifts: weights, embeddings, inputs, operators.",
    ),
    "shift-blocks": Entry(
        Kind.METHOD,
        "laconic.quantize.bct:ShiftBlocks",
        "Rounds weights, and inputs if asked, to integers times a power of two for each block; needs no data.",
    ),
    "hqq": Entry(
        Kind.METHOD,
        "laconic.quantize.hqq:HQQ",
        "Rounds to grids between the extremes whose zero points lose least in the l_0.7 norm.",
    ),
    "ecgptq": Entry(
        Kind.METHOD,
        "laconic.quantize.ecgptq:ECGPTQ",
        "Rounds column by column to a step that, entropy coded, takes the bits that are asked for.",
    ),
    "l2": Entry(
        Kind.METHOD,
        "laconic.quantize.l2:L2",
        "Trains grids and weights of all layers together for the least loss at the size of the entropy-coded file.",
    ),
    "int": Entry(
        Kind.QUANTIZER,
        "laconic.tensors.integer:IntQuantizer",
        "Rounds to a uniform grid per group of a row, per row, or per tensor.",
    ),
    "static-int": Entry(
        Kind.QUANTIZER,
        "laconic.tensors.static:StaticIntQuantizer",
        "Rounds to one uniform grid over a fixed range, whatever the values are.",
    ),
    "float": Entry(
        Kind.QUANTIZER,
        "laconic.tensors.floats:FloatQuantizer",
        "Rounds to floats of 4, 6 or 8 bits that share a scale per block, per row, or per tensor.",
    ),
    "codebook": Entry(
        Kind.QUANTIZER,
        "laconic.tensors.codebook_quantizer:CodebookQuantizer",
        "Rounds neighbouring columns together to the nearest of a codebook's vectors, found by k-means.",
    ),
    "shift-block": Entry(
        Kind.QUANTIZER,
        "laconic.tensors.shift_quantizer:ShiftQuantizer",
        "Rounds each block of rows x columns to `code 2^-e + z`, so that products need no multiplied scales.",
    ),
    "binary": Entry(
        Kind.QUANTIZER,
        "laconic.tensors.binary_quantizer:BinaryQuantizer",
        "Approximates each group of a row by a sum of scaled sign vectors (binary coding).",
    ),
}


def find(name: str, kind: Kind = Kind.METHOD) -> Entry:
    """The entry `name` of `kind`; `UsageError` with the nearest name if there is none."""
    names = [n for n, entry in ENTRIES.items() if entry.kind is kind]
    if name not in names:
        raise UsageError(f"unknown {kind.value} {name!r}; {did_you_mean(name, names)}")
    return ENTRIES[name]


def name_of(cls: type) -> str:
    """The name under which `cls` is registered; its class name where it is not."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, entry in ENTRIES.items() if entry.path == path), cls.__name__)
