"""BlockTune: a compressed block is trained until it puts out what it should: scales, codebooks, norms, codes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from laconic.calibrate.live import LiveBlock
from laconic.calibrate.steps import BlockView
from laconic.errors import DataError, UsageError
from laconic.method import BlockMethod, Needs, Paper
from laconic.models.layout import Layer
from laconic.tensors import CompressedTensor, Dense, Grouped
from laconic.tensors.coded import Coded
from laconic.tensors.combined import Sum, Transformed
from laconic.tensors.stored import Record
from laconic.tune.blocks import BlockFit, first_output, fit_block
from laconic.tune.rounded import SHIFT, Rounded
from laconic.tune.schedules import linear
from laconic.tune.subsets import is_norm
from laconic.tune.tunable import Tunable

Target = Literal["model", "block"]

FIXED = ("zero",)  # zero points are whole numbers
#: Of Adam for the shifts of codes. It moves each by nearly the same, whatever its gradient: epsilon is tiny.
SHIFTS = {"betas": (0.9, 0.99), "eps": 1e-30}
REACH = 0.1  # steps that a shift moves in all where its gradient keeps its sign


@dataclass(frozen=True)
class BlockTune(BlockMethod):
    """Trains what is free in each block, the codes of uniform grids too, until it puts out what it should.

    The last link of a recipe: `[gptq, blocktune]`, `[aqlm, blocktune]`. Inputs are what comes through the
    compressed blocks before. Codes of uniform grids move by one step where that helps, as SignRound has it
    (Cheng et al., 2023, arXiv 2309.05516), but from where error feedback put them; those of codebooks stay.
    The best epoch on sequences that were not trained on is kept, and whatever happens no block gets worse
    on them.

    Args:
        epochs: passes over the sequences; rates fall evenly to 0.
        rate: learning rate of Adam for scales, codebooks and norms, as a share of the root mean square of
            each; above 0.
        batch: sequences for each step.
        norms: whether the gains of norms are trained as well.
        codes: whether codes of uniform grids may change.
        target: what a block shall put out: what the dense `model` does there, so that blocks make up for
            the errors of those before; or what the dense `block` makes of the inputs that it is given.
        patience: epochs without a gain after which a block is done.

    Example:
        >>> BlockTune(epochs=3).settings()["rate"]
        0.0005
    """

    epochs: int = 6
    rate: float = 5e-4
    batch: int = 2
    norms: bool = True
    codes: bool = True
    target: Target = "model"
    patience: int = 6

    paper = Paper(78, "Extreme compression of LLMs via additive quantization", 2024, "2401.06118")
    needs = Needs.TRAINING
    taxonomy = ("quantization", "post-training", "block-wise tuning", "learned rounding")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.patience < 1:
            raise UsageError(
                f"epochs, batch and patience must be at least 1, found {self.epochs!r}, {self.batch!r}, "
                f"{self.patience!r}"
            )
        if not self.rate > 0:
            raise UsageError(f"rate must be above 0, found {self.rate!r}")
        if self.target not in get_args(Target):
            raise UsageError(f"target must be 'model' or 'block', found {self.target!r}")

    @property
    def follows_dense(self) -> bool:
        return self.target == "model"

    def revise_block(self, view: BlockView) -> None:
        """Trains the block of `view`, and notes what came of it."""
        if not view.sequences:
            raise DataError("blocktune needs calibration data: give --data")
        live = view.live
        records = {layer: live.record(layer) for layer in live.layers}
        with torch.inference_mode(False):
            freed = {la: self._freed(r.weight, _as_seen(live, la, r)) for la, r in records.items()}
            norms = _norms(live) if self.norms else {}
            parameters = [p for value in freed.values() for p in _parameters(value)]
            if not parameters and not norms:
                return
            targets = self._targets(view)
            for layer, value in freed.items():
                live.install(layer, replace(records[layer], weight=value))
            fit = self._fit(view, parameters, norms, targets)
            for layer, value in freed.items():
                live.install(layer, replace(records[layer], weight=_settled(value)))
            _keep_norms(live, norms)
        live.decode()
        note = f"blocktune: error of the block {fit.before:.3g} to {fit.after:.3g}"
        for stats in view.stats.values():
            stats.note(note if not fit.diverged else f"{note}; {fit.diverged}")

    def _fit(
        self, view: BlockView, parameters: list[tuple[str, Tensor]],
        norms: Mapping[str, Tensor], targets: Mapping[int, Tensor],
    ) -> BlockFit:  # fmt: skip
        shifts = [p for name, p in parameters if name == SHIFT]
        others = [p for name, p in parameters if name != SHIFT] + list(norms.values())
        steps = self.epochs * -(-len(view.sequences) // self.batch)
        groups: list[Any] = list(others)
        if shifts:
            groups.append({"params": shifts, "lr": 2 * REACH / steps, **SHIFTS})
        with _training([*shifts, *others]):
            return fit_block(
                view.live.module, view.output, lambda s: targets[s], view.sequences,
                parameters=groups, epochs=self.epochs, batch=self.batch, rate=self.rate,
                patience=self.patience, schedule=partial(linear, warmup=0.0), relative=True,
                precision="auto",
            )  # fmt: skip

    def _freed(self, value: CompressedTensor, weight: Tensor) -> CompressedTensor:
        """`value` with what is trained as parameters; masks and factors stay as they are.

        `weight` is the dense one, as it stands behind the transforms before `value`.
        """
        if isinstance(value, Transformed):
            return replace(value, inner=self._freed(value.inner, value.transform.fold(weight)))
        if isinstance(value, Sum):
            alone = replace(
                self, codes=False
            )  # what codes should come near to, the other parts change
            return replace(value, parts=tuple(alone._freed(p, weight) for p in value.parts))
        if not isinstance(value, Coded):
            return value
        if self.codes and isinstance(value, Grouped) and value.numel:
            return Rounded.between(value, weight)
        names = [
            name for name, tensor in value.tensors().items()
            if tensor.is_floating_point() and not name.startswith(FIXED)
        ]  # fmt: skip
        return Tunable.of(value, names)

    def _targets(self, view: BlockView) -> dict[int, Tensor]:
        """What the dense block makes of the inputs of the compressed one, or of the dense model's."""
        live = view.live
        records = {layer: live.record(layer) for layer in live.layers}
        for layer in live.layers:
            live.install(layer, Record(Dense(live.weight(layer))))
        live.decode()
        try:
            with torch.inference_mode():
                found = {s: first_output(self._goal(view, s)).clone() for s in view.sequences}
        finally:
            for layer, record in records.items():
                live.install(layer, record)
        with torch.inference_mode(False):
            return {s: value.clone() for s, value in found.items()}

    def _goal(self, view: BlockView, sequence: int) -> Any:
        """What the block, which is dense now, should put out."""
        if self.target == "model":
            return view.target(sequence, view.live.module)
        return view.output(sequence)


def _as_seen(live: LiveBlock, layer: Layer, record: Record) -> Tensor:
    """The layer's dense weight behind the transform that stands before its module."""
    weight = live.weight(layer)
    return weight if record.transform is None else record.transform.fold(weight)


def _parameters(value: CompressedTensor) -> Iterator[tuple[str, Tensor]]:
    """What is trained of `value`: names and tensors."""
    if isinstance(value, Tunable):
        yield from value.values.items()
    elif isinstance(value, Transformed):
        yield from _parameters(value.inner)
    elif isinstance(value, Sum):
        for part in value.parts:
            yield from _parameters(part)


def _settled(value: CompressedTensor) -> CompressedTensor:
    if isinstance(value, Transformed):
        return replace(value, inner=_settled(value.inner))
    if isinstance(value, Sum):
        return replace(value, parts=tuple(_settled(part) for part in value.parts))
    return value.settled() if isinstance(value, Tunable) else value


def _norms(live: LiveBlock) -> dict[str, nn.Parameter]:
    """The parameters of norms of a block that the file keeps, by the model's names."""
    found = {}
    for path, module in live.module.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            name = ".".join(part for part in (live.block.name, path, key) if part)
            if is_norm(module) and name in live.untouched:
                found[name] = parameter
    return found


def _keep_norms(live: LiveBlock, norms: dict[str, nn.Parameter]) -> None:
    """Rounds trained norms to the model's dtype, in the file and in what computes."""
    for name, parameter in norms.items():
        kept = parameter.detach().to(live.tensors[name].dtype)
        live.tensors[name] = kept
        parameter.data = kept.to(parameter.dtype)


@contextmanager
def _training(parameters: list[Tensor]) -> Iterator[None]:
    """While inside, `parameters` require gradients."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
