"""`train`: the one small training loop.

Everything in it is a pure function of the step: which batches, which learning rate, which random
numbers. A run that was interrupted and goes on from its checkpoint ends with the same bits as one that
was not, on one thread of one machine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laconic.errors import UsageError
from laconic.progress import SILENT, Progress
from laconic.tensors.modules import device_of
from laconic.tune import checkpoint as checkpoints
from laconic.tune.batches import Batches, InOrder, mixed, to_device
from laconic.tune.precision import Precision, products, resolve
from laconic.tune.schedules import Schedule, constant
from laconic.tune.state import Callback, Diverged, History, TrainState, kept_modes

Loss = Callable[[nn.Module, Any], Tensor]  # of the model and a batch: a mean, without dimensions
Factory = Callable[[list[nn.Parameter]], Optimizer]


def train(
    model: nn.Module, batches: Batches | Sequence[Any], loss: Loss,
    *, optimizer: Optimizer | Factory, steps: int | None = None, epochs: int | None = None,
    schedule: Schedule = constant, callbacks: Sequence[Callback] = (), clip: float | None = None,
    accumulate: int = 1, precision: Precision = "auto", seed: int = 0,
    device: torch.device | str | None = None, progress: Progress = SILENT,
    checkpoint: Path | None = None, checkpoint_every: int = 100,
) -> History:  # fmt: skip
    """Trains what the optimizer holds, in place; every module is in its former mode afterwards.

    Args:
        model: is put into training mode; a callback may change that in `on_start`.
        batches: a list (taken in order, again and again), `Shuffled`, or other `Batches`.
        loss: of the model and a batch, which is on the device; a mean over the batch.
        optimizer: made for the parameters that it shall train; or what makes one of all parameters
            that require gradients, such as `partial(torch.optim.AdamW, lr=1e-4)`.
        steps: of the optimizer; give this or `epochs`.
        epochs: passes over `batches`.
        schedule: factor of the learning rates at each step, constant by default.
        callbacks: called in this order.
        clip: largest Euclidean length of the whole gradient; not clipped by default.
        accumulate: batches for each step, whose losses are averaged; at least 1.
        precision: `fp32`; `bf16` matrix products by autocast; `auto`, bf16 where the processor has
            it in hardware.
        seed: of all random numbers that the model draws. The caller's are not disturbed.
        device: where to train; where the model is by default.
        progress: follows the steps.
        checkpoint: a file to go on from, if it is there, and to write. It also keeps a finished run
            from being done again: remove it to train anew.
        checkpoint_every: steps between two writings; the end is always written.

    Returns:
        What was measured at each step, those before an interruption included.

    Raises:
        UsageError: settings that cannot be, or a checkpoint of another run.
        DataError: there are no batches.
        Diverged: the loss or its gradient is NaN or infinite; names the step. The parameters are
            those before it.
        CorruptFile: the checkpoint is damaged.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> history = train(
        ...     layer, [torch.ones(4, 1)], lambda model, x: (model(x) - 3 * x).square().mean(),
        ...     optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1), steps=50,
        ... )
        >>> bool(history.loss[-1] < 1e-6)
        True
    """
    source = batches if isinstance(batches, Batches) else InOrder(batches)
    count = _count(steps, epochs, len(source), accumulate, checkpoint_every, clip)
    place = device_of(model) if device is None else torch.device(device)
    model.to(place)
    settings = _Settings(source, loss, schedule, clip, accumulate, resolve(precision, place), place)
    with kept_modes(model), _own_randomness(place), torch.enable_grad():
        model.train()
        state = TrainState(model, _optimizer(optimizer, model), count)
        torch.manual_seed(mixed(seed))
        for callback in callbacks:
            callback.on_start(state)
        header = _header(state, settings, seed)
        if checkpoint is not None and checkpoint.exists():
            checkpoints.load(checkpoint, state, callbacks, header)
        try:
            _run(state, settings, callbacks, seed, progress, checkpoint, checkpoint_every, header)
        finally:
            for group in state.optimizer.param_groups:
                group["lr"] = group.pop("base_lr", group["lr"])
        for callback in callbacks:
            callback.on_end(state)
    return state.history


@dataclass(frozen=True)
class _Settings:
    batches: Batches
    loss: Loss
    schedule: Schedule
    clip: float | None
    accumulate: int
    precision: Precision
    device: torch.device


def _run(
    state: TrainState, settings: _Settings, callbacks: Sequence[Callback], seed: int,
    progress: Progress, checkpoint: Path | None, every: int, header: dict[str, Any],
) -> None:  # fmt: skip
    left = range(state.step, 0 if state.stop else state.steps)
    for _ in progress.track(left, "training", len(left)):
        torch.manual_seed(mixed(seed, state.step))
        _step(state, settings, callbacks)
        last = state.stop or state.step == state.steps
        state.history.stopped = state.stop
        if checkpoint is not None and (last or state.step % every == 0):
            checkpoints.save(checkpoint, state, callbacks, header)
        if last:
            break


def _step(state: TrainState, settings: _Settings, callbacks: Sequence[Callback]) -> None:
    """Batches, gradients, one move of the optimizer."""
    state.model.zero_grad(set_to_none=True)
    state.optimizer.zero_grad(set_to_none=True)
    for callback in callbacks:
        callback.before_step(state)
    state.loss = _backward(state, settings)
    _check_finite("loss", state.loss, state)
    for callback in callbacks:
        callback.after_backward(state)
    norm = _clip(state.parameters, settings.clip)
    _check_finite("gradient's length", norm, state)
    factor = settings.schedule(state.step, state.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = factor * group.setdefault("base_lr", group["lr"])
    state.optimizer.step()
    state.history.loss.append(state.loss)
    state.history.rate.append(float(state.optimizer.param_groups[0]["lr"]))
    state.history.norm.append(norm)
    state.step += 1
    for callback in callbacks:
        callback.after_step(state)


def _backward(state: TrainState, settings: _Settings) -> float:
    """The mean loss of the step's batches; its gradients are added to what is there."""
    total = torch.zeros((), device=settings.device)
    for part in range(settings.accumulate):
        batch = settings.batches.at(state.step * settings.accumulate + part)
        with products(settings.precision, settings.device):
            loss = settings.loss(state.model, to_device(batch, settings.device))
        if loss.ndim or not loss.requires_grad:
            raise UsageError(
                "the loss must be one number that depends on a parameter with gradients, found "
                f"shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
            )
        (loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / settings.accumulate
    return float(total)


def _clip(parameters: list[Tensor], most: float | None) -> float:
    """The length of the gradient, which afterwards is at most `most`."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if most is not None:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)


def _check_finite(what: str, value: float, state: TrainState) -> None:
    if not math.isfinite(value):
        rates = [group["lr"] for group in state.optimizer.param_groups]
        raise Diverged(
            f"the {what} is {value} at step {state.step + 1} of {state.steps}, learning rate "
            f"{max(rates):.3g}: lower the learning rate, clip the gradient or look at this batch"
        )


def _count(
    steps: int | None, epochs: int | None, batches: int, accumulate: int, every: int,
    clip: float | None,
) -> int:  # fmt: skip
    """The steps of the run, once all settings are known to be possible."""
    if (steps is None) == (epochs is None):
        raise UsageError(f"give steps or epochs, found steps={steps} and epochs={epochs}")
    for name, value in (("accumulate", accumulate), ("checkpoint_every", every)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")
    if clip is not None and not clip > 0:
        raise UsageError(f"clip must be above 0, found {clip}")
    count = steps if steps is not None else max(1, (epochs or 0) * batches // accumulate)
    if count < 0 or (epochs is not None and epochs < 1):
        raise UsageError(f"a run has at least one step, found steps={steps}, epochs={epochs}")
    return count


def _optimizer(optimizer: Optimizer | Factory, model: nn.Module) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("nothing to train: no parameter of the model requires gradients")
    return optimizer(parameters)


def _header(state: TrainState, settings: _Settings, seed: int) -> dict[str, Any]:
    """What a checkpoint must agree with."""
    return {
        "steps": state.steps,
        "batches": len(settings.batches),
        "accumulate": settings.accumulate,
        "precision": settings.precision,
        "clip": settings.clip,
        "seed": seed,
        "optimizer": type(state.optimizer).__name__,
        "learning rates": [float(group["lr"]) for group in state.optimizer.param_groups],
    }


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Seeds set inside do not reach the caller."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
