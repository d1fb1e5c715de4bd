"""BCT: every matrix of a transformer in small blocks with shifts for scales, every operator on integers."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import UnsupportedModel, UsageError, did_you_mean
from laconic.method import LayerMethod, ModelMethod, ModelPlan, Needs, Paper
from laconic.models.integer import unsupported
from laconic.models.layout import Layer
from laconic.models.operators import OPERATORS, Operators
from laconic.models.source import ModelSource
from laconic.progress import Progress
from laconic.tensors import CompressedTensor, ShiftQuantizer
from laconic.tensors.stored import Record

PAPER = Paper(
    91, "Blockwise Compression of Transformer-based Models without Retraining", 2023, "2304.01483"
)
NONLINEAR = ("softmax", "norm", "activation")
PARTS = ("embedding", "linear", *OPERATORS)


@dataclass(frozen=True)
class ShiftBlocks(LayerMethod):
    """Rounds weights, and inputs if asked, to integers times a power of two for each block; needs no data.

    Args:
        bits: of weights, 2 to 8.
        rows: of a block, at least 1.
        columns: of a block, at least 1.
        search: shifts that are tried for the least squared error, 1 to 4; 1 never clips (the paper's).
        middle: whether a block's mean is taken off where that loses less; with it a block takes 24 bits
            beside its codes, without it 8.
        inputs: bits of the layers' inputs, 2 to 8, never clipped; 0 leaves them as they are.
        tokens: that share a shift among the inputs, of as many channels as a block has columns.

    Example:
        >>> import torch
        >>> ShiftBlocks().compress_weight(torch.randn(128, 128)).format
        'int4 shift 64x64'
    """

    bits: int = 4
    rows: int = 64
    columns: int = 64
    search: int = 3
    middle: bool = True
    inputs: int = 0
    tokens: int = 1

    paper = PAPER
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "uniform", "power of two", "blockwise")

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits must be 2 to 8, found {self.bits!r}")
        if self.inputs and not 2 <= self.inputs <= 8:
            raise UsageError(f"inputs must be 2 to 8 bits, or 0, found {self.inputs!r}")
        self.quantizer(), self.activation()

    def quantizer(self) -> ShiftQuantizer:
        """Of the weights; checks the settings."""
        return ShiftQuantizer(self.bits, self.rows, self.columns, self.search, self.middle)

    def activation(self) -> ShiftQuantizer | None:
        """Of the inputs, if they are rounded."""
        if not self.inputs:
            return None
        return ShiftQuantizer(self.inputs, self.tokens, self.columns, search=1)

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) in its blocks."""
        return self.quantizer().quantize(weight)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """Weight and activation quantizer."""
        made = super().revise(weight, record, stats)
        rounds = self.inputs and stats.layer.kind != "embedding"
        return replace(made, activation=self.activation()) if rounds else made

    def options(self) -> tuple["ShiftBlocks", ...]:
        """2 to 8 bits."""
        return tuple(replace(self, bits=bits) for bits in range(2, 9))


@dataclass(frozen=True)
class BCT(ModelMethod):
    """Rounds all of a transformer to integers in blocks with shifts: weights, embeddings, inputs, operators.

        weights, embeddings: 4 bits, 64 x 64 blocks of 24 bits more, 7.988 times smaller than fp32
        inputs of products, attention's two included: 8 bits, shifts found as they come
        softmax, norms, GELU and its like: on integers; sums between sublayers: 8 bits

    Args:
        wbits: of weights and embeddings, 2 to 8.
        abits: of inputs, 2 to 8.
        block: rows and columns of a block of weights, and channels of a block of inputs.
        tokens: of a block of inputs. 1 keeps tokens apart: results depend neither on later tokens nor on
            the batch. The paper's blocks take 64, across sequences.
        nonlinear: `int`, softmax, norms and activation functions on integers; or `fp`, as they are.
        stream: bits of the sums between sublayers, 2 to 16.
        attention: shift of attention weights: one for each `row`, or `fixed` at 8, as in the paper.
        embeddings: `block`, cut as other weights; or `row`, a shift for each run of a row, so that rare
            tokens do not share one with others.
        search: shifts tried for each block of weights, 1 to 4; 1 never clips (the paper's).
        parts: `all`, or some of embedding, linear, attention, softmax, norm, stream, activation with `+`
            between them, to see what each of them costs.
        strict: whether an operator that stays float is an error; otherwise it is noted.

    Example:
        >>> BCT(parts="linear+softmax").chosen
        ('linear', 'softmax')
    """

    wbits: int = 4
    abits: int = 8
    block: int = 64
    tokens: int = 1
    nonlinear: Literal["int", "fp"] = "int"
    stream: int = 8
    attention: Literal["row", "fixed"] = "row"
    embeddings: Literal["block", "row"] = "block"
    search: int = 3
    parts: str = "all"
    strict: bool = False

    paper = PAPER
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "weights and activations", "integer-only")

    def __post_init__(self) -> None:
        for name, known in (("nonlinear", ("int", "fp")), ("embeddings", ("block", "row"))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be one of {known}, found {getattr(self, name)!r}")
        for part in self.chosen:
            if part not in PARTS:
                raise UsageError(f"no part {part!r}; {did_you_mean(part, PARTS)}")
        self.operators(), self.layer_method()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts that are rounded."""
        named = PARTS if self.parts == "all" else tuple(self.parts.split("+"))
        return tuple(p for p in named if self.nonlinear == "int" or p not in NONLINEAR)

    def operators(self) -> Operators:
        """What is installed into the model."""
        which = tuple(part for part in OPERATORS if part in self.chosen)
        return Operators(which, self.abits, self.tokens, self.block, self.stream, self.attention)

    def layer_method(self, layer: Layer | None = None) -> ShiftBlocks:
        """What a layer is compressed with."""
        if layer is not None and layer.kind == "embedding":
            rows = 1 if self.embeddings == "row" else self.block
            return ShiftBlocks(self.wbits, rows, self.block, self.search)
        return ShiftBlocks(
            self.wbits, self.block, self.block, self.search, inputs=self.abits, tokens=self.tokens
        )

    def plan(
        self, source: ModelSource, calibration: Calibration | None = None,
        *, device: str = "cpu", progress: Progress | None = None,
    ) -> ModelPlan:  # fmt: skip
        """The layers' methods, and the edit that installs the integer operators."""
        operators = self.operators()
        notes = self._notes(source)
        layers = [layer for block in source.blocks for layer in block.layers]
        outside = [layer for layer in source.extra_layers if self._takes(layer)]
        methods = {
            layer.name: self.layer_method(layer)
            for layer in [*layers, *outside]
            if self._takes(layer)
        }
        edits = (operators.edit(),) if operators.operators else ()
        also = tuple(dict.fromkeys(layer.module for layer in outside))
        return ModelPlan(methods, edits, notes, also)

    def _takes(self, layer: Layer) -> bool:
        return ("embedding" if layer.kind == "embedding" else "linear") in self.chosen

    def _notes(self, source: ModelSource) -> tuple[str, ...]:
        """What stays float.

        Raises:
            UnsupportedModel: something does, and `strict` was asked for.
        """
        lines = list(unsupported(source.skeleton)) if self.operators().operators else []
        ties = getattr(source.skeleton, "all_tied_weights_keys", None)
        if ties and "embedding" in self.chosen:
            lines.append(f"{next(iter(ties))} is tied: it multiplies inputs that are not rounded")
        if lines and self.strict:
            raise UnsupportedModel("strict: " + "; ".join(lines))
        return tuple(f"bct: {line}" for line in lines)
