"""MLoRQ: plain integers or factors of integers, layer by layer, under one memory budget."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import DataError, UsageError
from laconic.method import LayerMethod, ModelMethod, ModelPlan, Needs, Paper
from laconic.models.source import ModelSource
from laconic.numerics._checks import check_finite
from laconic.numerics.adaround import Annealing, learned_factors
from laconic.numerics.soft_codes import SoftCodes
from laconic.progress import SILENT, Progress
from laconic.quantize._mlorq_candidates import Choice, factor_grids, row_factors
from laconic.quantize._mlorq_search import Search, allocate
from laconic.quantize.adaround import AdaRound
from laconic.tensors import CompressedTensor, Dense, Grouped, LowRank

PAPER = Paper(
    113, "MLoRQ: Bridging Low-Rank and Quantization for Transformer Compression", 2025, "2507.09616"
)
Inputs = Literal["activation", "none"]
RANKS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class QuantizedFactors(LayerMethod):
    """Replaces every weight by two factors of integers, whose rounding is learned together.

        D W H^(1/2) = U S V^T;  A = D^-1 U_r,  B = U_r^T D W;  W' = A_q B_q

    with H = E[x x^T]. Ranges are percentiles of each row; whether a code goes up or down is learned for both
    factors at once, for the least tr((W' - W) H (W' - W)^T), and never loses more than rounding to the
    nearest. `mlorq` chooses ranks and widths, and gives D what each output counts.

    Args:
        rank: at least 1, or as much as the layer has.
        left: bits of A (out, rank), 2 to 8.
        right: bits of B (rank, in), 2 to 8.
        steps: of the training; 0 rounds to the nearest.
        inputs: `activation` as above; `none` factors with H = I, as the paper does.
        rows: (out,) squares of D, all 1 by default; no setting, and not told in recipes.

    Example:
        >>> QuantizedFactors(rank=16).settings()
        {'rank': 16, 'left': 6, 'right': 6, 'steps': 500, 'inputs': 'activation'}
    """

    rank: int = 32
    left: int = 6
    right: int = 6
    steps: int = 500
    inputs: Inputs = "activation"
    rows: Tensor | None = field(default=None, compare=False, repr=False)

    by_rows = False
    paper = PAPER
    needs = Needs.INPUTS
    taxonomy = ("quantization", "factorization", "post-training", "low rank", "learned rounding")

    def __post_init__(self) -> None:
        for name in ("rank", "left", "right"):
            value, low = getattr(self, name), 1 if name == "rank" else 2
            if type(value) is not int or value < low or (name != "rank" and value > 8):
                ends = "at least 1" if name == "rank" else "2 to 8"
                raise UsageError(f"{name} must be a whole number, {ends}, found {value!r}")
        _check_inputs(self.inputs)
        Annealing(steps=self.steps)

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as JSON values; `rows` is none."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) as two factors."""
        check_finite("the weight", weight)
        if not weight.numel():
            return Dense(weight.clone())
        w = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        rank = min(self.rank, *w.shape)
        if rank < self.rank:
            stats.note(f"a rank of {self.rank} is more than the layer has: all of it is kept")
        moment = stats.mean(SecondMoment())
        seen = moment if self.inputs == "activation" else None
        rows = torch.ones(len(w), device=w.device) if self.rows is None else self.rows.to(w.device)
        a, b, energy = row_factors(w, rows, seen, rank)
        grids = factor_grids(a, b, energy, seen, (self.left, self.right))
        soft = [
            SoftCodes(part, grid.scale, grid.zero, 2**bits - 1)
            for part, grid, bits in zip((a, b), grids, (self.left, self.right))
        ]
        codes = learned_factors(w, *soft, moment, annealing=Annealing(steps=self.steps))
        left, right = (
            Grouped.from_codes(
                part, grid.scale, grid.zero, bits=bits, group=grid.group, dtype=weight.dtype
            )
            for part, grid, bits in zip(codes, grids, (self.left, self.right))
        )
        return LowRank(left, right, tuple(weight.shape[2:]))

    def options(self) -> tuple[Self, ...]:
        """Ranks from 8 to 512."""
        return tuple(replace(self, rank=rank) for rank in RANKS)


@dataclass(frozen=True)
class MLoRQ(ModelMethod):
    """Chooses for each layer b bits, or two factors of a rank with bits of their own, under one budget.

        layer --Hessian-weighted error--> undominated forms --a few in the model--> scores
        scores, bytes --exact knapsack--> one form for each layer --learned rounding--> layers

    Args:
        bits: average over the weights of the blocks' layers, in memory with scales and zero points.
        widths: of plain layers, 2 to 8, set apart by spaces.
        factors: widths of factors, likewise; the paper's are `4 6 8`. None by default: on the models that
            were measured, choosing widths alone lost no more. Convolutions of more than one position
            are never factored.
        inputs: `activation` weighs columns by the second moment of the layer's inputs, `none` weighs
            rows alone, as the paper does.
        predictions: answers (positions of text, images) that forms are measured on; 1024 in the paper.
        points: ranks of each pair of widths that are measured, at least 2; the others are interpolated.
        steps: of learned rounding.
        seed: of the random directions of derivatives.

    Example:
        >>> MLoRQ(bits=2.5, factors="4 6 8").settings()["factors"]
        '4 6 8'
    """

    bits: float = 3.0
    widths: str = "2 3 4 6 8"
    factors: str = ""
    inputs: Inputs = "activation"
    predictions: int = 1024
    points: int = 5
    steps: int = 500
    seed: int = 0

    paper = PAPER
    needs = Needs.INPUTS
    taxonomy = ("quantization", "factorization", "post-training", "mixed precision", "allocation")

    def __post_init__(self) -> None:
        if not self.bits > 0:
            raise UsageError(f"bits must be above 0, found {self.bits!r}")
        if not _numbers("widths", self.widths):
            raise UsageError("widths names no width: give some of 2 to 8, such as '2 3 4 6 8'")
        _numbers("factors", self.factors)
        _check_inputs(self.inputs)
        Annealing(steps=self.steps)
        if self.predictions < 1 or self.points < 2 or self.seed < 0:
            raise UsageError(
                "predictions must be at least 1, points 2 and seed 0, found "
                f"{self.predictions}, {self.points}, {self.seed}"
            )

    def plan(
        self, source: ModelSource, calibration: Calibration | None,
        *, device: str = "cpu", progress: Progress | None = None,
    ) -> ModelPlan:  # fmt: skip
        """The form of each layer."""
        found = self.search(source, calibration, device=device, progress=progress or SILENT)
        chosen = allocate(found, self.bits)
        methods = {
            name: self._method(choice, found.layers[name].rows)
            for name, choice in chosen.choices.items()
        }
        return ModelPlan(methods, notes=chosen.notes(self.bits))

    def search(
        self, source: ModelSource, calibration: Calibration | None,
        *, device: str = "cpu", progress: Progress = SILENT,
    ) -> Search:  # fmt: skip
        """The forms of every layer with their bytes and scores, for any budget."""
        if calibration is None:
            raise DataError("the search measures the model on calibration sequences: give --data")
        search = Search(
            source, calibration, _numbers("widths", self.widths), _numbers("factors", self.factors),
            inputs=self.inputs, predictions=self.predictions, points=self.points, seed=self.seed,
            device=device, progress=progress,
        )  # fmt: skip
        search.run(progress)
        return search

    def _method(self, choice: Choice, rows: Tensor) -> LayerMethod:
        if choice.bits:
            return AdaRound(choice.bits, "row", False, "percentile", self.steps)
        return QuantizedFactors(
            choice.rank, choice.left, choice.right, self.steps, self.inputs, rows
        )


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Widths, rising, each once."""
    try:
        found = sorted({int(word) for word in text.split()})
    except ValueError:
        found = [0]
    if any(not 2 <= bits <= 8 for bits in found):
        raise UsageError(f"{name} are numbers from 2 to 8 set apart by spaces, found {text!r}")
    return tuple(found)


def _check_inputs(inputs: str) -> None:
    if inputs not in ("activation", "none"):
        raise UsageError(f"inputs must be 'activation' or 'none', found {inputs!r}")
