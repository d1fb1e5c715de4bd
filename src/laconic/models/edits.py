"""Structural edits of transformers models: recorded as JSON, replayed on the model they came from.

Dropped parts stay in their place as modules without parameters, so that paths and the model's own
code do not change; whole blocks can also be removed, which leaves a plain smaller model. The KV
cache keeps working: it finds its length in the first slots, which the remaining attentions take.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from laconic.errors import UnsupportedModel, UsageError, did_you_mean
from laconic.models.dropped import DroppedAttention, DroppedBlock, DroppedMLP
from laconic.models.integer import install
from laconic.models.layout import find_blocks
from laconic.models.operators import Operators

Parts = Mapping[str, type[nn.Module]]  # submodules of a block, and what stands for them

#: The two sublayers of a block: their names, and the modules in which they add to the stream. Where
#: a layer norm follows the addition (BERT), it belongs to the stream and stays.
_LLAMA: dict[str, tuple[str, Parts]] = {
    "attention": ("self_attn", {"self_attn": DroppedAttention}),
    "mlp": ("mlp", {"mlp": DroppedMLP}),
}
SUBLAYERS: dict[str, dict[str, tuple[str, Parts]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe"), _LLAMA),
    "gpt2": {
        "attention": ("attn", {"attn": DroppedAttention}),
        "mlp": ("mlp", {"mlp": DroppedMLP}),
    },
    "opt": {
        "attention": ("self_attn", {"self_attn": DroppedAttention}),
        "mlp": ("mlp", {"fc1": nn.Identity, "fc2": DroppedMLP}),
    },
    "bert": {
        "attention": (
            "attention",
            {"attention.self": DroppedAttention, "attention.output.dense": DroppedMLP},
        ),
        "mlp": ("mlp", {"intermediate": nn.Identity, "output.dense": DroppedMLP}),
    },
    "vit": {
        "attention": ("attention", {"attention": DroppedAttention}),
        "mlp": ("mlp", {"mlp": DroppedMLP}),
    },
}


@dataclass(frozen=True)
class Unit:
    """What can be dropped as a whole.

    Attributes:
        path: its name in edits: a block's path, or a sublayer's below it. OPT and BERT have no one
            module for the feed-forward part; it is called `mlp` there too.
        kind: `block`, `attention` or `mlp`.
        block: number of its block, from 0.
    """

    path: str
    kind: str
    block: int


def droppable(model: nn.Module) -> tuple[Unit, ...]:
    """Everything in `model` that `drop` takes, dropped already or not, in order of computation.

    Raises:
        UnsupportedModel: the architecture is not one of `SUBLAYERS`.
    """
    units = []
    for number, block in enumerate(find_blocks(model)):
        units.append(Unit(block, "block", number))
        for kind, (name, _) in _sublayers(model).items():
            units.append(Unit(f"{block}.{name}", kind, number))
    return tuple(units)


class Switch:
    """Takes one unit of a model out and puts it back, in place; searches use it.

    The cache slots are left as they are: call `renumber` once it is known what stays.

    Args:
        model: a transformers model of an architecture in `SUBLAYERS`.
        path: of a `Unit`, such as `model.layers.3.self_attn`.

    Raises:
        UnsupportedModel: another architecture.
        UsageError: no such unit, or it is dropped already.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        found = {unit.path: unit for unit in droppable(model)}
        if path not in found:
            raise UsageError(f"{path!r} cannot be dropped; {did_you_mean(path, found)}")
        self._model = model
        self._present: dict[str, nn.Module] = {}
        self._absent: dict[str, nn.Module] = {}
        for part, replacement in _parts(model, found[path]).items():
            try:
                module = model.get_submodule(part)
            except AttributeError as error:
                raise UsageError(f"{path} is gone: its block is dropped already") from error
            if isinstance(module, replacement):
                raise UsageError(f"{path} is dropped already")
            self._present[part] = module
            self._absent[part] = replacement().train(module.training)

    def set(self, present: bool) -> None:
        """Puts the unit in its place, or what stands for it when it is dropped."""
        for part, module in (self._present if present else self._absent).items():
            self._model.set_submodule(part, module)


def drop(model: nn.Module, path: str) -> Callable[[], None]:
    """Replaces an attention, an MLP or a block by a module that adds nothing, in place.

    The attentions that remain are renumbered, so that `generate` with a KV cache works.

    Args:
        model: a transformers model of an architecture in `SUBLAYERS`.
        path: of a `Unit`, such as `model.layers.3.self_attn`.

    Returns:
        A function that undoes it; several are undone in reverse.

    Raises:
        UnsupportedModel: another architecture.
        UsageError: no such unit, or it is dropped already.
    """
    switch = Switch(model, path)
    switch.set(False)
    renumber(model)

    def undo() -> None:
        switch.set(True)
        renumber(model)

    return undo


def renumber(model: nn.Module) -> None:
    """Gives the attentions that are left the first slots of the KV cache, in place.

    Transformers asks the first slot how many tokens were seen. Where a model mixes kinds of
    attention (full, sliding), each kind has slots of its own. Of a kind that is wholly dropped, one
    dropped module counts the tokens in its place.
    """
    blocks = find_blocks(model)
    types = getattr(getattr(model, "config", None), "layer_types", None) or [None] * len(blocks)
    for kind in dict.fromkeys(types):
        slots = [number for number, other in enumerate(types) if other == kind]
        holders = [_attention(model, blocks[number]) for number in slots[: len(blocks)]]
        left = [h for h in holders if not isinstance(h, DroppedAttention | DroppedBlock)]
        for holder in holders:
            if isinstance(holder, DroppedAttention | DroppedBlock):
                holder.layer_idx = None
        for slot, holder in zip(slots, left or holders[:1]):
            if hasattr(holder, "layer_idx"):
                holder.layer_idx = slot  # type: ignore[assignment]


def remove_blocks(model: nn.Module, numbers: Sequence[int]) -> None:
    """Takes whole blocks out, in place: what is left is a plain model with fewer blocks.

    It can be saved and loaded without laconic. Nothing is changed if that cannot be.

    Args:
        model: a transformers model of an architecture in `SUBLAYERS`.
        numbers: of blocks, from 0, in any order.

    Raises:
        UnsupportedModel: another architecture, or a configuration that cannot describe the rest.
        UsageError: no such block, or none would be left.
    """
    paths = find_blocks(model)
    _sublayers(model)
    gone = set(numbers)
    if not gone <= set(range(len(paths))):
        raise UsageError(f"there are blocks 0 to {len(paths) - 1}, found {sorted(numbers)}")
    if len(gone) == len(paths):
        raise UsageError("one block must be left")
    kept = [number for number in range(len(paths)) if number not in gone]
    changes = _settings_of(model.config, kept)
    parent, _, name = paths[0].rpartition(".")[0].rpartition(".")
    home = model.get_submodule(parent)
    before = getattr(home, name)
    setattr(home, name, nn.ModuleList(before[number] for number in kept))
    if not _describes(model, changes):
        setattr(home, name, before)
        raise UnsupportedModel(
            f"the configuration of {type(model).__name__} cannot describe blocks {kept} alone; "
            "drop the others instead"
        )
    for key, value in changes.items():
        setattr(model.config, key, value)
    renumber(model)


def apply_edits(model: nn.Module, edits: Sequence[Mapping[str, Any]]) -> None:
    """Replays edits in order, in place.

    Args:
        model: as it was before the first of them.
        edits: `{"op": "drop", "module": path}`, `{"op": "remove_blocks", "blocks": [number, ...]}` or
            `{"op": "integer", ...}` as `laconic.models.operators.Operators` makes it.

    Raises:
        UsageError: an edit that is none of these or does not fit the model; the ones before it are
            made.
        UnsupportedModel: an architecture that cannot be edited.
    """
    for edit in edits:
        match edit:
            case {"op": "drop", "module": str(path)}:
                drop(model, path)
            case {"op": "remove_blocks", "blocks": [*numbers]}:
                remove_blocks(model, numbers)
            case {"op": "integer", **settings}:
                install(model, Operators.from_edit(settings))
            case _:
                raise UsageError(
                    f"unknown edit {dict(edit)!r}; expected drop, remove_blocks or integer"
                )


def drops(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The edits that drop `paths`, as `apply_edits` takes them.

    Example:
        >>> drops(["model.layers.3.mlp"])
        [{'op': 'drop', 'module': 'model.layers.3.mlp'}]
    """
    return [{"op": "drop", "module": path} for path in paths]


def _sublayers(model: nn.Module) -> dict[str, tuple[str, Parts]]:
    kind = str(getattr(getattr(model, "config", None), "model_type", None))
    if kind not in SUBLAYERS:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be edited; known: {', '.join(sorted(SUBLAYERS))}"
        )
    return SUBLAYERS[kind]


def _parts(model: nn.Module, unit: Unit) -> dict[str, type[nn.Module]]:
    """By path the modules to replace, and what with."""
    if unit.kind == "block":
        return {unit.path: DroppedBlock}
    name, parts = _sublayers(model)[unit.kind]
    block = unit.path.removesuffix(f".{name}")
    return {f"{block}.{part}": replacement for part, replacement in parts.items()}


def _attention(model: nn.Module, block: str) -> nn.Module:
    """What holds the slot of a block: its attention, or the block where it is dropped."""
    module = model.get_submodule(block)
    if isinstance(module, DroppedBlock):
        return module
    return module.get_submodule(next(iter(_sublayers(model)["attention"][1])))


def _settings_of(config: Any, kept: list[int]) -> dict[str, Any]:
    """What the configuration of the blocks `kept` alone says otherwise."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise UnsupportedModel("attention is scaled by the number of its block; drop it instead")
    settings: dict[str, Any] = {"num_hidden_layers": len(kept)}
    if getattr(config, "layer_types", None):
        settings["layer_types"] = [config.layer_types[number] for number in kept]
    if hasattr(config, "mlp_only_layers"):  # which blocks have no experts
        step, only = config.decoder_sparse_step, config.mlp_only_layers
        dense = [number in only or (number + 1) % step != 0 for number in kept]
        settings["mlp_only_layers"] = [place for place, plain in enumerate(dense) if plain]
        settings["decoder_sparse_step"] = 1
    return settings


def _describes(model: nn.Module, changes: Mapping[str, Any]) -> bool:
    """Whether the parameters of `model` are those of its configuration after `changes`."""
    config: Any = deepcopy(model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        empty: nn.Module = type(model)(config)
    expected = {name: p.shape for name, p in empty.named_parameters(remove_duplicate=False)}
    return all(expected.get(name) == p.shape for name, p in model.named_parameters())
