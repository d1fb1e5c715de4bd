"""BlockTune: what is not a code is trained until a compressed block puts out what the dense one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from laconic.calibrate.live import LiveBlock
from laconic.calibrate.steps import BlockView
from laconic.errors import DataError, UsageError
from laconic.method import BlockMethod, Needs, Paper
from laconic.tensors import CompressedTensor, Dense
from laconic.tensors.coded import Coded
from laconic.tensors.combined import Sum, Transformed
from laconic.tensors.stored import Record
from laconic.tune.blocks import first_output, fit_block
from laconic.tune.subsets import is_norm
from laconic.tune.tunable import Tunable

FIXED = ("zero",)  # zero points are whole numbers


@dataclass(frozen=True)
class BlockTune(BlockMethod):
    """Trains scales, codebooks and norms of each block until it puts out what the dense block does; codes stay.

    The last link of a recipe: `[aqlm, blocktune]`. Inputs are what comes through the compressed blocks
    before; targets are what the dense block makes of these same inputs. Rates are relative to the size of
    what is trained, by Adam, and the best epoch on sequences that were not trained on is kept.

    Args:
        epochs: passes over the sequences, at most; at least 1.
        rate: learning rate, as a share of the root mean square of each trained tensor; above 0.
        batch: sequences for each step.
        norms: whether the gains of norms are trained as well.
        patience: epochs without a gain after which a block is done.

    Example:
        >>> BlockTune(epochs=3).settings()["rate"]
        0.001
    """

    epochs: int = 5
    rate: float = 1e-3
    batch: int = 8
    norms: bool = True
    patience: int = 2

    paper = Paper(78, "Extreme compression of LLMs via additive quantization", 2024, "2401.06118")
    needs = Needs.TRAINING
    taxonomy = ("quantization", "post-training", "block-wise tuning")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.patience < 1:
            raise UsageError(
                f"epochs, batch and patience must be at least 1, found {self.epochs!r}, {self.batch!r}, "
                f"{self.patience!r}"
            )
        if not self.rate > 0:
            raise UsageError(f"rate must be above 0, found {self.rate!r}")

    def revise_block(self, view: BlockView) -> None:
        """Trains the block of `view`, and notes what came of it."""
        if not view.sequences:
            raise DataError("blocktune needs calibration data: give --data")
        live, records = view.live, {la: view.live.record(la) for la in view.live.layers}
        with torch.inference_mode(False):
            freed = {layer: _freed(record.weight) for layer, record in records.items()}
            norms = _norms(live) if self.norms else {}
            free = [*(t for _, values in freed.values() for t in values), *norms.values()]
            if not free:
                return
            targets = _targets(view)
            for layer, (value, _) in freed.items():
                live.install(layer, replace(records[layer], weight=value))
            with _training(free):
                fit = fit_block(
                    live.module, view.output, lambda s: targets[s], view.sequences, parameters=free,
                    epochs=self.epochs, batch=self.batch, rate=self.rate, patience=self.patience,
                    relative=True,
                )  # fmt: skip
            for layer, record in records.items():
                value = _settled(live.record(layer).weight)
                live.install(layer, replace(record, weight=value))
            _keep_norms(live, norms)
        live.decode()
        note = f"blocktune: error of the block {fit.before:.3g} to {fit.after:.3g}"
        for stats in view.stats.values():
            stats.note(note if not fit.diverged else f"{note}; {fit.diverged}")


def _targets(view: BlockView) -> dict[int, Tensor]:
    """What the dense block makes of the inputs that the compressed one is given."""
    live = view.live
    records = {layer: live.record(layer) for layer in live.layers}
    for layer in live.layers:
        live.install(layer, Record(Dense(live.weight(layer))))
    live.decode()
    try:
        with torch.inference_mode():
            found = {s: first_output(view.output(s)).clone() for s in view.sequences}
    finally:
        for layer, record in records.items():
            live.install(layer, record)
    with torch.inference_mode(False):
        return {s: value.clone() for s, value in found.items()}


def _freed(value: CompressedTensor) -> tuple[CompressedTensor, list[Tensor]]:
    """`value` with its real numbers as parameters, and these; masks and factors stay as they are."""
    if isinstance(value, Transformed):
        inner, free = _freed(value.inner)
        return replace(value, inner=inner), free
    if isinstance(value, Sum):
        parts = [_freed(part) for part in value.parts]
        return replace(value, parts=tuple(p for p, _ in parts)), [t for _, f in parts for t in f]
    if not isinstance(value, Coded):
        return value, []
    names = [
        name for name, tensor in value.tensors().items()
        if tensor.is_floating_point() and not name.startswith(FIXED)
    ]  # fmt: skip
    tunable = Tunable.of(value, names)
    return tunable, list(tunable.values.values())


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
