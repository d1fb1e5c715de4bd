"""What each form of each layer costs the whole model, and which forms fit a budget together: of MLoRQ.

run, block by block --second moments--> forms of a layer --some, alone in the model--> scores
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from laconic.allocate.fitness import LiveModel
from laconic.allocate.knapsack import knapsack
from laconic.allocate.logit_error import LogitError
from laconic.allocate.options import Options
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.label_free import label_free_hessian
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.options import RunOptions
from laconic.calibrate.runner import run_layers
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.calibrate.steps import BlockView
from laconic.errors import BudgetError
from laconic.models.layout import Layer
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.quantize._mlorq_candidates import Candidates, Choice, candidates
from laconic.tensors import Dense
from laconic.tensors.stored import Record

SEQUENCES, PROBES = 32, 32  # that answers are differentiated on, and along how many directions each
TOLD = 6  # kinds of forms in a note


@dataclass(frozen=True)
class Allocation:
    """The forms that were chosen, and how far the answers of the model with all of them are off.

    Attributes:
        choices: by layer name.
        kind: `knapsack`, or what was better in the model itself.
        bits: resident, a weight.
        expected: the sum of the scores.
        measured: by what was tried, the relative squared error of the answers, rounded to the nearest.
    """

    choices: dict[str, Choice]
    kind: str
    bits: float
    expected: float
    measured: dict[str, float]

    def notes(self, wanted: float) -> tuple[str, ...]:
        """Sentences for the report."""
        forms: dict[str, int] = {}
        for choice in self.choices.values():
            key = (
                f"int{choice.bits}"
                if choice.bits
                else f"factors int{choice.left} x int{choice.right}"
            )
            forms[key] = forms.get(key, 0) + 1
        most = sorted(forms.items(), key=lambda pair: (-pair[1], pair[0]))[:TOLD]
        tried = ", ".join(f"{kind} {error:.4g}" for kind, error in self.measured.items())
        return (
            f"mlorq at {wanted:g} bits: {', '.join(f'{n} x {form}' for form, n in most)}; "
            f"{self.bits:.4g} bits a weight in memory",
            f"mlorq: relative squared error of the answers before rounding is learned: {tried}; layer by "
            f"layer {self.expected:.4g} were expected; {self.kind} was taken",
        )


@dataclass
class Search:
    """Forms and scores of all layers of a model's blocks.

    Args:
        source: the model; not changed.
        calibration: sequences.
        widths: of plain layers.
        factors: of factors.
        inputs: `activation` or `none`, see `MLoRQ`.
        predictions: answers that forms are measured on.
        points: ranks that are measured for each pair of widths.
        seed: of the derivatives.
        device: where to compute.
        progress: follows the first passes.

    Attributes:
        layers: forms, by layer name.
        scores: of these, relative squared errors of the model's answers.
        measured: numbers of the forms that were put into the model.
        model: dense.
        error: measures it.
    """

    source: ModelSource
    calibration: Calibration
    widths: Sequence[int]
    factors: Sequence[int]
    inputs: str = "activation"
    predictions: int = 1024
    points: int = 5
    seed: int = 0
    device: str = "cpu"
    progress: Progress = SILENT
    layers: dict[str, Candidates] = field(default_factory=dict, init=False)
    scores: dict[str, list[float]] = field(default_factory=dict, init=False)
    measured: dict[str, list[int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        fitted = [self.calibration.inputs[i] for i in self.calibration.fitted]
        self.model = LiveModel(self.source, self.device)
        self.error = LogitError(
            self.source, self.model, fitted, predictions=self.predictions, progress=self.progress
        )
        self._hessian = label_free_hessian(
            self.source, self.calibration, sequences=min(SEQUENCES, self.error.sequences),
            probes=PROBES, seed=self.seed, device=self.device, progress=self.progress,
        )  # fmt: skip

    def run(self, progress: Progress = SILENT) -> None:
        """Finds and measures the forms of every layer."""
        run_layers(
            self.source, NoSink(), [_Measure(self)],
            calibration=self.calibration if self.inputs == "activation" else None,
            options=RunOptions(device=self.device), progress=progress, what="measuring forms of layers",
        )  # fmt: skip
        self._hessian.clear()

    def measure(self, layer: Layer, stats: LayerStats) -> None:
        """Finds the forms of a layer and puts some of them into the model."""
        weight = self.model.weight(layer.name)
        moment = None
        if self.inputs == "activation" and stats.count(SecondMoment()):
            moment = stats.mean(SecondMoment())
        matrix = weight.reshape(weight.shape[0], -1).float()
        plain_only = weight.ndim > 2 and weight.shape[2:].numel() > 1
        made = candidates(
            matrix, self._hessian.pop(layer.name), moment,
            widths=self.widths, factors=() if plain_only else self.factors,
        )  # fmt: skip
        self.measured[layer.name] = made.measured(self.points)
        found = {n: self.score(layer, made, n) for n in self.measured[layer.name]}
        self.model.install(layer.name, None)
        self.layers[layer.name] = made
        self.scores[layer.name] = made.scores(found).tolist()

    def score(self, layer: Layer, made: Candidates, number: int) -> float:
        """The error of the answers with one form of one layer in the model."""
        self.place(layer, made, made.choices[number])
        return self.error()

    def place(self, layer: Layer, made: Candidates, choice: Choice) -> None:
        """Puts a form into the model."""
        value = made.dense(choice).reshape(layer.shape)
        self.model.install(layer.name, Record(Dense(value)))

    def options(self, *, factors: bool = True) -> Options:
        """Resident bytes and scores of all forms; of plain ones alone without `factors`."""
        rows = {}
        for name, made in self.layers.items():
            known = zip(made.bytes.tolist(), self.scores[name], made.choices)
            rows[name] = [row for row in known if factors or row[2].bits]
        return Options.of(rows)

    def whole(self, choices: Mapping[str, Choice]) -> float:
        """The error of the answers with all of `choices` in the model; it is dense again afterwards."""
        for name, choice in choices.items():
            self.place(self.model.layers[name], self.layers[name], choice)
        try:
            return self.error()
        finally:
            for name in choices:
                self.model.install(name, None)

    @property
    def weights(self) -> int:
        """Of all layers together."""
        return sum(made.shape[0] * made.shape[1] for made in self.layers.values())


def allocate(search: Search, bits: float) -> Allocation:
    """The forms with the least sum of scores within `bits` a weight in memory.

    Errors of layers do not quite add up: the model is asked with all of the forms at once, also with the
    best plain ones and with the greatest width that all layers can have, and the best of these is taken.

    Raises:
        BudgetError: even the smallest forms take more; says how much they take.
    """
    table = search.options()
    budget = bits * search.weights / 8
    if table.least > budget:
        raise BudgetError(
            f"{bits:g} bits a weight cannot be met: the smallest forms take "
            f"{8 * table.least / search.weights:.4g} in memory; give more bits or smaller widths"
        )
    tried = {"knapsack": table.spread(budget, knapsack)}
    plain = search.options(factors=False)
    if plain.least <= budget:
        tried["plain knapsack"] = plain.spread(budget, knapsack)
    for width in sorted(search.widths, reverse=True):
        uniform = {name: Choice(width) for name in search.layers}
        if sum(c.bytes(*search.layers[n].shape) for n, c in uniform.items()) <= budget:
            tried[f"int{width} everywhere"] = uniform
            break
    measured = {kind: search.whole(choices) for kind, choices in tried.items()}
    kind = min(measured, key=lambda k: measured[k])
    return Allocation(
        tried[kind], kind, 8 * _bytes(search, tried[kind]) / search.weights,
        expected=_score(search, tried[kind]), measured=measured,
    )  # fmt: skip


def _bytes(search: Search, choices: Mapping[str, Choice]) -> int:
    return sum(choice.bytes(*search.layers[name].shape) for name, choice in choices.items())


def _score(search: Search, choices: Mapping[str, Choice]) -> float:
    return sum(
        search.scores[name][search.layers[name].choices.index(choice)]
        for name, choice in choices.items()
    )


class _Measure:
    """A step that measures the forms of the layers of each block, and leaves the model dense."""

    changes_inputs = False
    follows_dense = False

    def __init__(self, search: Search) -> None:
        self._search = search

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),) if self._search.inputs == "activation" else ()

    def revise_block(self, view: BlockView) -> None:
        """Finds and measures."""
        with torch.no_grad(), self._search.error.behind(view.number):
            for layer in view.live.layers:
                self._search.measure(layer, view.stats[layer.name])
