"""Block tuning: what a block can still learn is fitted so that its output is what it should be."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import DataError, UsageError
from laconic.progress import SILENT, Progress
from laconic.tune.batches import Shuffled
from laconic.tune.callbacks import KeepBest
from laconic.tune.loop import train
from laconic.tune.precision import Precision
from laconic.tune.schedules import Schedule, constant
from laconic.tune.state import Callback, Diverged, TrainState

BETAS = (0.9, 0.95)  # of Adam, as AQLM has them


@dataclass(frozen=True)
class BlockFit:
    """What a block's tuning came to.

    Attributes:
        before: relative error `||Y' - Y||^2 / ||Y||^2` of the output on the held-out sequences.
        after: the same with the parameters that were kept; at most `before`.
        epochs: that were trained.
        diverged: what went wrong, where the loss became NaN; the best parameters before are kept.
    """

    before: float
    after: float
    epochs: int
    diverged: str = ""


def fit_block(
    module: nn.Module, output: Callable[[int], Any], target: Callable[[int], Any],
    sequences: Sequence[int],
    *, parameters: Iterable[Tensor | dict[str, Any]] | None = None, epochs: int = 5, batch: int = 8,
    rate: float = 1e-4, held_out: float = 0.2, patience: int = 3, clip: float | None = None,
    schedule: Schedule = constant, seed: int = 0, relative: bool = False,
    precision: Precision = "fp32", progress: Progress = SILENT,
) -> BlockFit:  # fmt: skip
    """Fits parameters of a block by Adam so that `output(i)` comes near `target(i)`, in place.

    With a calibration's `BlockView`: `fit_block(view.live.module, view.output, partial(view.target,
    dense=dense), view.sequences)`, once `train_only(view.live.module, "norm", "bias")`, adapters or
    `Tunable` weights have said what is to be trained.

    Args:
        module: the block; stays in evaluation mode.
        output: what the block makes of a sequence, now, with gradients; (..., d) or a tuple that begins
            with that.
        target: what it should make of it. It is asked for in every epoch: wrap it in `functools.cache`
            where memory allows.
        sequences: their numbers.
        parameters: that are fitted, those of `module` that require gradients by default; or groups of them
            with settings of Adam of their own, as torch takes them.
        epochs: passes over the sequences, at most.
        batch: sequences for each step.
        rate: learning rate, constant by default.
        held_out: share of the sequences, the last ones, on which it is decided what was best; 0 to
            decide on those that are fitted.
        patience: epochs without a gain after which it ends.
        clip: largest length of the gradient.
        schedule: factor of the learning rate.
        seed: of the order of sequences.
        relative: the rate is a share of the root mean square of each parameter.
        precision: of products while fitting, see `train`; errors that decide are measured in fp32.
        progress: follows the steps.

    Raises:
        UsageError: nothing to fit, or a setting out of range.
        DataError: there are no sequences, or all are to be held out.

    Source: AQLM (Egiazarian et al., 2024, arXiv 2401.06118), section 3.4, whose rate is 1e-5.
    """
    groups = _groups(module.parameters() if parameters is None else parameters, rate, relative)
    if not groups:
        raise UsageError("nothing to fit: no parameter of the block requires gradients")
    fitted, judged = _split(list(sequences), held_out)
    batches = Shuffled(fitted, batch, seed=seed, collate=list)

    def relative_error() -> float:
        lost, whole = 0.0, 0.0
        for sequence in judged:
            goal = first_output(target(sequence))
            lost += _energy(first_output(output(sequence)) - goal)
            whole += _energy(goal)
        return lost / whole if whole else lost

    def loss(_: nn.Module, numbers: list[int]) -> Tensor:
        return torch.stack([_distance(output, target, number) for number in numbers]).mean()

    with torch.inference_mode(False), _readable_inputs(module):
        best = KeepBest(relative_error, every=len(batches), patience=patience)
        diverged = ""
        try:
            train(
                module, batches, loss,
                optimizer=torch.optim.Adam(groups, lr=rate, betas=BETAS),
                epochs=epochs, schedule=schedule, callbacks=[_Evaluating(), best], clip=clip,
                precision=precision, seed=seed, progress=progress,
            )  # fmt: skip
        except Diverged as error:
            best.restore()
            diverged = str(error)
    before = best.values[0]
    after = min((v for v in best.values if not math.isnan(v)), default=before)
    return BlockFit(before, after, len(best.values) - 1, diverged)


class _Evaluating(Callback):
    """Dropout and batch statistics stay as they are when the model is used."""

    def on_start(self, state: TrainState) -> None:
        state.model.eval()


def _groups(
    parameters: Iterable[Tensor | dict[str, Any]], rate: float, relative: bool
) -> list[dict[str, Any]]:
    """What is to be fitted as the optimizer takes it, each parameter with its rate."""
    groups = []
    for given in parameters:
        if isinstance(given, dict):
            groups.append(given)
        elif given.requires_grad:
            size = float(given.detach().square().mean().sqrt()) or 1.0 if relative else 1.0
            groups.append({"params": [given], "lr": rate * size})
    return groups


def _split(sequences: list[int], held_out: float) -> tuple[list[int], list[int]]:
    """Those that are fitted, and those on which is decided."""
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out is a share of the sequences, 0 up to 1, found {held_out}")
    if not sequences:
        raise DataError("there are no sequences to fit the block to")
    last = math.ceil(held_out * len(sequences)) if len(sequences) > 1 else 0
    if last == len(sequences):
        raise DataError(f"all of {last} sequences would be held out: lower held_out")
    return (sequences[:-last], sequences[-last:]) if last else (sequences, sequences)


def _distance(output: Callable[[int], Any], target: Callable[[int], Any], number: int) -> Tensor:
    with torch.no_grad():
        goal = first_output(target(number))
    return (first_output(output(number)).float() - goal.float()).square().mean()


def first_output(output: Any) -> Tensor:
    """(..., d) what a block puts out, or what stands first where it puts out several things."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _energy(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


@contextmanager
def _readable_inputs(module: nn.Module) -> Iterator[None]:
    """What the block is given may have been made in inference mode, which gradients do not take."""

    def plain(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return _copied(args), _copied(kwargs)

    handle = module.register_forward_pre_hook(plain, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _copied(given: Any) -> Any:
    """`given` with copies of the tensors in it that were made in inference mode."""
    if isinstance(given, Tensor):
        return given.clone() if given.is_inference() else given
    if type(given) in (list, tuple):
        return type(given)(_copied(item) for item in given)
    return {k: _copied(v) for k, v in given.items()} if type(given) is dict else given
