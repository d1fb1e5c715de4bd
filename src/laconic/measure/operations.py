"""What modules multiply, in closed form: the unit of `flops` and `latency`.

A multiply-accumulate (MAC) is one product that is added to a sum. Elementwise work (norms,
activations, residuals, softmax, masks) is not counted, as is the custom of the field.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from laconic.measure.values import products, transform_products, unknown_products
from laconic.tensors.convolutions import CompressedConv1d, CompressedConv2d
from laconic.tensors.experts import CompressedExperts
from laconic.tensors.modules import (
    CompressedEmbedding,
    CompressedLinear,
    CompressedModule,
    TiedEmbedding,
    TiedLinear,
    is_conv1d,
)
from laconic.tensors.replacement import is_experts
from laconic.tensors.stacked import Stacked

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag, CompressedEmbedding, TiedEmbedding)
LINEARS = (CompressedLinear, TiedLinear)
CONVOLUTIONS = (CompressedConv1d, CompressedConv2d)
DENSE = "dense"


@dataclass(frozen=True)
class Operation:
    """One multiplication as its shape describes it.

    Attributes:
        kind: `linear`, `conv`, `embedding`, `attention`, `product` (of two activations, or with a
            weight that is no module's own) or `experts`.
        sizes: names and numbers; which ones depends on the kind.
        format: of the weight, `dense` where it is not compressed.
        source: the module that computed it; not compared.

    Example:
        >>> Operation.of("linear", rows=8, inputs=4, outputs=2).macs
        64
    """

    kind: str
    sizes: tuple[tuple[str, int], ...]
    format: str = DENSE
    source: nn.Module | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, kind: str, format: str = DENSE, source: nn.Module | None = None, **sizes: int
    ) -> Self:
        """With its sizes by name."""
        return cls(kind, _pairs(sizes), format, source)

    def __getitem__(self, name: str) -> int:
        """The size called `name`."""
        return dict(self.sizes)[name]

    def with_sizes(self, **changed: int) -> "Operation":
        """The same with other sizes."""
        return replace(self, sizes=_pairs(dict(self.sizes) | changed))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense operation; attention in full, causal or not."""
        s = dict(self.sizes)
        if self.kind == "linear":
            return s["rows"] * s["inputs"] * s["outputs"]
        if self.kind == "conv":
            kernel = math.prod(size for name, size in self.sizes if name.startswith("kernel"))
            weights = s["inputs"] * s["outputs"] // s["groups"] * kernel
            return s["images"] * s["positions"] * weights
        if self.kind == "attention":
            products = s["queries"] * s["keys"] * (s["width"] + s["value_width"])
            return s["heads"] * products
        if self.kind == "product":
            return s["batch"] * s["rows"] * s["inner"] * s["columns"]
        if self.kind == "experts":
            return 3 * s["routed"] * s["hidden"] * s["inner"]
        return 0  # an embedding is looked up

    @property
    def results(self) -> int:
        """Numbers that come out, which what follows works on one by one."""
        s = dict(self.sizes)
        if self.kind == "linear":
            return s["rows"] * s["outputs"]
        if self.kind == "conv":
            steps = [size for name, size in self.sizes if name.startswith("stride")]
            larger = math.prod(steps) if s["transposed"] else 1
            return s["images"] * s["positions"] * larger * s["outputs"]
        if self.kind == "attention":
            return s["heads"] * s["queries"] * s["value_width"]
        if self.kind == "product":
            return s["batch"] * s["rows"] * s["columns"]
        if self.kind == "experts":
            return s["routed"] * (2 * s["inner"] + s["hidden"])
        return s["rows"] * s["width"]


@dataclass(frozen=True)
class Counted:
    """An operation and what it costs as its weight is kept.

    Attributes:
        operation: its shape.
        macs: with the weights that the format keeps; `operation.macs` is the dense number.
        unknown: parts that are not counted.
    """

    operation: Operation
    macs: int
    unknown: tuple[str, ...] = ()


def is_known(module: nn.Module) -> bool:
    """Whether `operation_of` counts `module` by its shape.

    Subclasses may compute something else; what they multiply is seen as products.
    """
    exact = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d)
    compressed = isinstance(module, (*LINEARS, *CONVOLUTIONS, *EMBEDDINGS, CompressedExperts))
    return exact or compressed or is_conv1d(module) or is_experts(module)


def operation_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Counted:
    """What a known module computed for its arguments."""
    given = args[0] if args else next(iter(kwargs.values()))
    if isinstance(module, EMBEDDINGS):
        width = output.shape[-1]
        operation = Operation.of("embedding", rows=output.numel() // width, width=width)
        return Counted(operation, 0)
    if isinstance(module, CompressedExperts) or is_experts(module):
        index = args[1] if len(args) > 1 else kwargs["top_k_index"]
        return _experts(module, index)
    if isinstance(module, nn.Conv1d | nn.Conv2d | CompressedConv1d | CompressedConv2d):
        return _convolution(module, given, output)
    return _linear(module, given, output)


def conv_operation(
    x: torch.Size, weight: torch.Size, output: torch.Size, geometry: Mapping[str, Any],
    format: str = DENSE, source: nn.Module | None = None,
) -> Operation:  # fmt: skip
    """A convolution of inputs (B, C, ...) with kernels (out, in / groups, ...).

    Args:
        x: of the inputs.
        weight: (in, out / groups, ...) if it is transposed.
        output: of the result.
        geometry: stride, padding, dilation, groups and transposed.
        format: of the weight.
        source: the module.
    """
    dims = len(weight) - 2
    transposed, groups = bool(geometry.get("transposed")), int(geometry["groups"])
    first, second = weight[0], weight[1] * groups
    channels = (first, second) if transposed else (second, first)
    spread = {"kernel": list(weight[2:]), "input": list(x[2:])}
    for name in ("stride", "dilation", "padding"):
        spread[name] = _each(geometry[name], dims, weight[2:], geometry["dilation"])
    sizes = {
        "images": x[0], "positions": math.prod(x[2:] if transposed else output[2:]),
        "inputs": channels[0], "outputs": channels[1], "groups": groups, "transposed": transposed,
    }  # fmt: skip
    sizes |= {f"{name}{i}": size for name, row in spread.items() for i, size in enumerate(row)}
    return Operation("conv", _pairs(sizes), format, source)


def attention_operation(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Operation:
    """Scores of queries (..., S, E) and keys (..., L, E), and their sums of values (..., L, V)."""
    return Operation.of(
        "attention", heads=query.shape[:-2].numel(), queries=query.shape[-2], keys=key.shape[-2],
        width=query.shape[-1], value_width=value.shape[-1], causal=bool(causal),
    )  # fmt: skip


def _linear(module: nn.Module, x: Tensor, output: Tensor) -> Counted:
    rows = x.numel() // x.shape[-1]
    sizes = {"rows": rows, "inputs": x.shape[-1], "outputs": output.shape[-1]}
    if isinstance(module, TiedLinear):
        value = module.__dict__["embedding"].weight
        operation = Operation("linear", _pairs(sizes), value.format, module)
        return Counted(operation, rows * products(value))
    if not isinstance(module, CompressedLinear):
        operation = Operation("linear", _pairs(sizes))
        return Counted(operation, operation.macs)
    each, unknown, format = _record(module, "weight")
    return Counted(Operation("linear", _pairs(sizes), format, module), rows * each, unknown)


def _convolution(module: Any, x: Tensor, output: Tensor) -> Counted:
    dims = len(module.weight.shape) - 2
    x = x if x.ndim == dims + 2 else x.unsqueeze(0)
    output = output if output.ndim == dims + 2 else output.unsqueeze(0)
    if not isinstance(module, CompressedModule):
        names = ("stride", "padding", "dilation", "groups")
        geometry = {name: getattr(module, name) for name in names}
        operation = conv_operation(x.shape, module.weight.shape, output.shape, geometry)
        return Counted(operation, operation.macs)
    each, unknown, format = _record(module, "weight")
    shape = module.weight.shape
    operation = conv_operation(x.shape, shape, output.shape, module.geometry, format, module)
    return Counted(operation, operation["images"] * operation["positions"] * each, unknown)


def _experts(module: Any, index: Tensor) -> Counted:
    """Only the experts that tokens were routed to; on average where the routing is not known."""
    experts, hidden, inner = module.down_proj.shape
    sizes = {"routed": index.numel(), "hidden": hidden, "inner": inner, "experts": experts}
    if not isinstance(module, CompressedModule):
        operation = Operation("experts", _pairs(sizes))
        return Counted(operation, operation.macs)
    counts = torch.bincount(index.reshape(-1), minlength=experts).tolist()
    macs, formats = 0, []
    unknown: list[str] = []
    for record in module.records.values():
        stack, each = record.weight, transform_products(record.transform)
        parts = stack.parts if isinstance(stack, Stacked) else ()
        per_slice = len(parts) // experts
        for part, value in enumerate(parts):
            macs += counts[part // per_slice] * products(value)
        macs += index.numel() * each
        unknown += unknown_products(record.transform)
        formats.append(stack.format)
    format = " | ".join(dict.fromkeys(formats))
    return Counted(Operation("experts", _pairs(sizes), format, module), macs, tuple(unknown))


def _record(module: CompressedModule, slot: str) -> tuple[int, tuple[str, ...], str]:
    """Products for each vector, what is not counted in them, and the format."""
    record = module.records[slot]
    each = products(record.weight) + transform_products(record.transform)
    return each, unknown_products(record.transform), record.weight.format


def _pairs(sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((name, int(size)) for name, size in sizes.items())


def _each(value: Any, dims: int, kernel: torch.Size, dilation: Any) -> list[int]:
    """A setting of a convolution for each dimension; `same` and `valid` as numbers."""
    if isinstance(value, str):
        spread = _each(dilation, dims, kernel, 1)
        same = value == "same"
        return [same * d * (k - 1) // 2 for d, k in zip(spread, kernel)]
    return [int(size) for size in value] if isinstance(value, tuple | list) else [int(value)] * dims
