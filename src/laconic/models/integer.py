"""Installs integer operators into a transformers model.

Modules are replaced by ones with the same parameters under the same names; attention is switched through
transformers' registry of attention functions. Weights are not touched: see `laconic.quantize.bct`.
"""

from functools import partial

from torch import nn

from laconic.models.dropped import DROPPED
from laconic.models.integer_modules import IntegerActivation, IntegerNorm, integer_attention
from laconic.models.operators import Operators
from laconic.tensors.replacement import twin_class

#: Functions of one number that become tables, by class name.
FUNCTIONS = frozenset({
    "GELU", "GELUActivation", "NewGELUActivation", "FastGELUActivation", "QuickGELUActivation",
    "GELUTanh", "ClippedGELUActivation", "AccurateGELUActivation", "SiLU", "SiLUActivation",
    "Tanh", "Sigmoid", "Mish", "MishActivation", "Softplus", "ELU", "Hardswish",
})  # fmt: skip
#: Leaves that are exact on integers, or do nothing in evaluation.
EXACT = frozenset({"Dropout", "Identity", "ReLU", "ReLU6", "Flatten", "MaxPool2d"})


def install(model: nn.Module, operators: Operators) -> None:
    """Makes `model` compute with integers, in place; what `unsupported` names stays as it is.

    Norms round their input in place: it is the sum that the block goes on adding to.
    """
    which = operators.operators
    for path, module in list(model.named_modules()):
        if {"norm", "stream"} & set(which) and _is_norm(module):
            model.set_submodule(path, IntegerNorm(module, operators).train(module.training))
        elif "activation" in which and type(module).__name__ in FUNCTIONS:
            model.set_submodule(path, IntegerActivation(module, operators).eval())
    if {"attention", "softmax"} & set(which) and has_attention(model):
        _register(operators)
        model.config._attn_implementation = operators.attention_name  # type: ignore[union-attr]


def has_attention(model: nn.Module) -> bool:
    """Whether the attention of `model` can be exchanged through transformers' registry."""
    return hasattr(model, "set_attn_implementation") and model._can_set_attn_implementation()  # type: ignore[operator]


def unsupported(model: nn.Module) -> tuple[str, ...]:
    """What stays float in `model` whatever is installed: a line for each kind of module, with an example."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        known = twin_class(module) is not None or _is_norm(module) or kind in FUNCTIONS | EXACT
        known = known or isinstance(module, (IntegerNorm, *DROPPED))
        leaf = next(module.children(), None) is None
        own = [*module._parameters, *module._buffers]
        if not known and leaf:
            found.setdefault(kind, path)
        elif not leaf and module._parameters:
            found.setdefault(f"{kind}.{own[0]}", f"{path}.{own[0]}".strip("."))
    lines = [f"{kind} (as {path}) stays float" for kind, path in found.items()]
    if not has_attention(model):
        lines.append(f"{type(model).__name__} has no attention of transformers' registry")
    return tuple(lines)


def _register(operators: Operators) -> None:
    """Makes the attention function, and the mask that it takes, known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = operators.attention_name
    ALL_ATTENTION_FUNCTIONS.register(name, partial(integer_attention, operators=operators))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, eager_mask)


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight")
