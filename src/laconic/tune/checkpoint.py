"""Files from which an interrupted training goes on, to the bit."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import UsageError
from laconic.tune.state import Callback, History, TrainState
from laconic.tune.values import read_values, write_values


def save(
    path: Path, state: TrainState, callbacks: Sequence[Callback], header: dict[str, Any]
) -> None:
    """Writes all that changes in a run: what the optimizer trains, buffers, moments, callbacks.

    The file appears complete or not at all. Frozen parameters are not in it.
    """
    content = {
        "header": header,
        "step": state.step,
        "stop": state.stop,
        "history": asdict(state.history),
        "parameters": [parameter.detach() for parameter in state.parameters],
        "buffers": dict(_buffers(state.model)),
        "optimizer": state.optimizer.state_dict(),
        "callbacks": [callback.state_dict() for callback in callbacks],
    }
    write_values(path, content)


@torch.no_grad()
def load(
    path: Path, state: TrainState, callbacks: Sequence[Callback], header: dict[str, Any]
) -> None:
    """Sets `state`, its model and optimizer, and `callbacks` to what `save` wrote.

    Raises:
        UsageError: the file is of a run with other settings, or of another model.
        CorruptFile: it is damaged or no such file.
    """
    content = read_values(path, "checkpoint of a training")
    _check(path, content, header)
    parameters, buffers = state.parameters, dict(_buffers(state.model))
    stored = content["parameters"]
    shapes, found = [tuple(p.shape) for p in parameters], [tuple(p.shape) for p in stored]
    if shapes != found or buffers.keys() != content["buffers"].keys():
        raise UsageError(
            f"{path} is the checkpoint of another model ({len(found)} trained tensors, here "
            f"{len(shapes)}): give another path or remove it"
        )
    for tensor, value in zip(parameters, stored):
        tensor.copy_(value)
    for name, tensor in buffers.items():
        tensor.copy_(content["buffers"][name])
    state.optimizer.load_state_dict(content["optimizer"])
    for callback, values in zip(callbacks, content["callbacks"]):
        callback.load_state_dict(values)
    state.step, state.stop = content["step"], content["stop"]
    state.history = History(**content["history"])
    state.loss = state.history.loss[-1] if state.history.loss else state.loss


def _check(path: Path, content: dict[str, Any], header: dict[str, Any]) -> None:
    stored = content["header"]
    differing = sorted(name for name in {*stored, *header} if stored.get(name) != header.get(name))
    if differing:
        raise UsageError(
            f"{path} is the checkpoint of another training ({', '.join(differing)} differ): "
            "give another path or remove it"
        )


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to the model's state, by name."""
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer
