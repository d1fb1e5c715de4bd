"""Which parameters are trained: biases, norms, the head, ... by their kind."""

from collections.abc import Iterator
from typing import Literal, get_args

from torch import nn

from laconic.errors import UsageError, did_you_mean
from laconic.tune.lora import LoRA

Subset = Literal["bias", "norm", "lora", "head", "embedding", "all"]


def train_only(model: nn.Module, *subsets: Subset) -> list[nn.Parameter]:
    """Lets gradients reach the parameters of these kinds and no others.

    `bias` is that of every layer, `norm` the gains and biases of normalisations, `lora` the factors of
    adapters, `head` and `embedding` the tables at both ends (one tensor where they are tied), `all`
    everything.

    Returns:
        The parameters, in the order of the model.

    Raises:
        UsageError: an unknown kind, or one that the model has none of.

    Source: PERP (Zimmer et al., 2023, arXiv 2312.15230) for which of them repair a pruned model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> [tuple(p.shape) for p in train_only(model, "bias")]
        [(2,)]
    """
    wanted: dict[int, nn.Parameter] = {}
    for subset in subsets:
        if subset not in get_args(Subset):
            raise UsageError(
                f"no kind of parameters {subset!r}; {did_you_mean(subset, get_args(Subset))}"
            )
        members = {id(parameter): parameter for parameter in _members(model, subset)}
        if not members:
            raise UsageError(f"{type(model).__name__} has no {subset} parameters to train")
        wanted |= members
    model.requires_grad_(False)
    chosen = [parameter for parameter in model.parameters() if id(parameter) in wanted]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a normalisation, by the name of its class: LayerNorm, RMSNorm, BatchNorm2d."""
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _members(model: nn.Module, subset: Subset) -> Iterator[nn.Parameter]:
    if subset == "all":
        yield from (p for p in model.parameters() if p.is_floating_point())
    elif subset in ("head", "embedding"):
        which = "get_output_embeddings" if subset == "head" else "get_input_embeddings"
        module = getattr(model, which, lambda: None)()
        if module is not None:
            yield from module.parameters()
    else:
        for module in model.modules():
            if subset == "lora" and isinstance(module, LoRA):
                yield from module.factors()
            elif subset == "norm" and is_norm(module):
                yield from module.parameters(recurse=False)
            elif subset == "bias" and not is_norm(module):
                bias = module._parameters.get("bias")
                if bias is not None:
                    yield bias
