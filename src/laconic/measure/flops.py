"""Multiply-accumulates and parameters of a model, module by module, for a given input.

Known layers are counted in closed form from the shapes that they see, so that a compressed layer is
not charged for decoding; every other product is seen where torch dispatches it. Attention counts
scores and values in full: a causal mask saves nothing here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import DataError, UnsupportedModel
from laconic.measure.counts import Counts, ParameterCounts
from laconic.measure.recorder import Recorder
from laconic.models.source import ModelSource, structure_of
from laconic.tensors.modules import device_of

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


def count(model: nn.Module | ModelSource, inputs: Inputs) -> Counts:
    """Counts the multiply-accumulates of one forward pass and the parameters.

    Args:
        model: a module, which runs once where its weights are and is not changed; or a source,
            whose skeleton is enough: on the meta device nothing is computed and no weight is read.
        inputs: what the model takes: a tensor, a tuple, or arguments by name. Only shapes matter,
            except to experts with compressed weights, which are counted as they are routed. On the
            meta device a model that asks whether something is true of its inputs, such as whether a
            mask hides anything, is told no.

    Raises:
        DataError: the model cannot take these inputs.
        UnsupportedModel: it cannot run without its weights; load them and count the module.

    Example:
        >>> counts = count(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.zeros(3, 8))
        >>> counts.macs, counts.params, counts.uncounted
        (96, 36, {})
    """
    module = model.skeleton if isinstance(model, ModelSource) else model
    tensors = [*module.parameters(), *module.buffers()]
    device = device_of(module)
    if any(tensor.device.type == "meta" for tensor in tensors):
        device = torch.device("meta")
        module = structure_of(module).to(device)
    recorder = Recorder(module)
    with recorder.watching(), torch.no_grad():
        _run(module, inputs, device)
    return recorder.counts()


def count_parameters(source: ModelSource) -> ParameterCounts:
    """Parameters in the blocks and outside, from shapes alone; tied ones once.

    Example:
        >>> from laconic.models.memory import MemorySource
        >>> count_parameters(MemorySource(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))))
        ParameterCounts(blocks={'0': 9}, rest=6)
    """
    known = source.sizes()
    sizes = {
        name: parameter.numel()
        for name, parameter in source.skeleton.named_parameters(remove_duplicate=False)
        if name in known
    }
    blocks = {
        block.name: sum(sizes.get(name, 0) for name in source.tensors_below(block.name))
        for block in source.blocks
    }
    return ParameterCounts(blocks, sum(sizes.values()) - sum(blocks.values()))


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` of a tensor, a tuple, or arguments by name."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The tensors of `inputs` on `device`."""

    def to(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(inputs, Mapping):
        return {name: to(value) for name, value in inputs.items()}
    return tuple(map(to, inputs)) if isinstance(inputs, tuple) else to(inputs)


def _run(module: nn.Module, inputs: Inputs, device: torch.device) -> None:
    try:
        call(module, moved(inputs, device))
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if device.type == "meta":
            raise UnsupportedModel(
                f"{type(module).__name__} cannot run without its weights: {reason}; "
                "load it and count the loaded module"
            ) from error
        raise DataError(f"{type(module).__name__} cannot take these inputs: {reason}") from error
