"""LoRA for a whole model: which layers get it, merging it, taking it away again."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from laconic.errors import UsageError, did_you_mean
from laconic.tune.lora import LoRA, is_linear
from laconic.tune.sparse_lora import KINDS

Kind = Literal["plain", "masked", "scale"]


def add_lora(
    model: nn.Module, *, rank: int | Mapping[str, int] = 16, alpha: float | None = 32.0,
    dropout: float = 0.0, kind: Kind = "plain", targets: Sequence[str] | None = None,
    masks: Mapping[str, Tensor] | None = None, seed: int = 0,
) -> dict[str, LoRA]:  # fmt: skip
    """Puts adapters in the places of linear layers, and freezes all other parameters.

    Args:
        model: changed in place.
        rank: of each update, or the rank by module path.
        alpha: updates are multiplied by alpha / rank; None for 1.
        dropout: of the updates' inputs in training mode.
        kind: `plain`, `masked` (zeros stay zero, by a mask) or `scale` (by multiplication).
        targets: path patterns such as `q_proj`, `*.mlp.*`; a name matches a path that ends with it. All
            linear layers but the head by default.
        masks: (out, in) booleans by module path, for `masked`; where weights are not zero by default.
        seed: of the starts.

    Returns:
        The adapters by module path.

    Raises:
        UsageError: a pattern matches no linear layer, a setting is wrong, or a weight is shared with
            another module, which merging would change as well.

    Source: LoRA (Hu et al., 2021, arXiv 2106.09685).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> list(add_lora(model, rank=1, targets=["2"]))
        ['2']
    """
    if kind not in KINDS:
        raise UsageError(f"no LoRA of kind {kind!r}; {did_you_mean(kind, KINDS)}")
    if masks is not None and kind != "masked":
        raise UsageError(f"masks are for kind='masked', found kind={kind!r}")
    paths = find_targets(model, targets)
    ranks = {path: rank if isinstance(rank, int) else _rank_of(path, rank) for path in paths}
    return attach(model, ranks, kind, alpha, dropout, masks or {}, seed)


def find_targets(model: nn.Module, patterns: Sequence[str] | None = None) -> list[str]:
    """Paths of the linear layers that match, in the order of the model; all but the head by default.

    Raises:
        UsageError: a pattern matches none, or there is none at all.
    """
    linear = {path: module for path, module in model.named_modules() if is_linear(module)}
    if patterns is None:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        chosen = [path for path, module in linear.items() if module is not head]
    else:
        for pattern in patterns:
            if not any(matches(path, pattern) for path in linear):
                names = {path.rsplit(".", 1)[-1] for path in linear}
                raise UsageError(
                    f"no linear layer matches {pattern!r}; {did_you_mean(pattern, names)}"
                )
        chosen = [path for path in linear if any(matches(path, p) for p in patterns)]
    if not chosen:
        raise UsageError(f"{type(model).__name__} has no linear layer to adapt")
    return chosen


def loras(model: nn.Module) -> dict[str, LoRA]:
    """The adapters in `model` by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRA)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All A and B in `model`."""
    return [factor for adapter in loras(model).values() for factor in adapter.factors()]


def merge_lora(model: nn.Module) -> nn.Module:
    """Puts every update into its layer and the layer back in its place; parameters stay frozen.

    Raises:
        BadWeights: an update holds NaN or infinity; those before it are merged.
    """
    for path, adapter in loras(model).items():
        model.set_submodule(path, adapter.merge())
    return model


def remove_lora(model: nn.Module) -> nn.Module:
    """Puts every layer back in its place as it was; parameters stay frozen."""
    for path, adapter in loras(model).items():
        model.set_submodule(path, adapter.base)
    return model


def attach(
    model: nn.Module, ranks: Mapping[str, int], kind: str, alpha: float | None, dropout: float,
    masks: Mapping[str, Tensor], seed: int,
) -> dict[str, LoRA]:  # fmt: skip
    """Adapters at the paths of `ranks`; the model is changed once all of them are made."""
    _refuse_shared(model, ranks)
    unknown = sorted(masks.keys() - ranks.keys())
    if unknown:
        raise UsageError(f"a mask for {unknown[0]!r}, which gets no adapter")
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, LoRA] = {}
    for path, rank in ranks.items():
        own: dict[str, Any] = {"mask": masks[path]} if path in masks else {}
        found[path] = KINDS[kind](
            model.get_submodule(path), rank, alpha=alpha, dropout=dropout, generator=draw, **own
        )
    model.requires_grad_(False)
    for path, adapter in found.items():
        adapter.train(adapter.base.training)
        adapter.base.requires_grad_(False)
        model.set_submodule(path, adapter)
    return found


def matches(path: str, pattern: str) -> bool:
    """Whether `pattern` is the path, its end after a dot, or fits it as `*.mlp.*` does."""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def _rank_of(path: str, ranks: Mapping[str, int]) -> int:
    found = [rank for pattern, rank in ranks.items() if matches(path, pattern)]
    if not found:
        raise UsageError(f"no rank was given for {path!r}")
    return found[0]


def _refuse_shared(model: nn.Module, paths: Iterable[str]) -> None:
    """Raises `UsageError` where a layer's weight is also another module's."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path in paths:
        weight = getattr(model.get_submodule(path), "weight", None)
        names = owners.get(id(weight), [])
        if len(names) > 1:
            raise UsageError(
                f"{names[0]} and {names[1]} are one tensor, and merging would change both: leave "
                f"{path!r} out or untie them first"
            )
