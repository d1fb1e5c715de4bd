"""Operations with made-up numbers, to be timed: the shape decides how long they take."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.measure.operations import DENSE, Operation
from laconic.tensors.convolutions import CompressedConv1d, CompressedConv2d
from laconic.tensors.experts import CompressedExperts

ROWS = 1024  # of the table that an embedding is timed with
SEED = 0


def runner(
    operation: Operation, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """A function that computes `operation` once, on normal numbers of a fixed seed.

    Args:
        operation: its shape; a compressed weight is run by the module that it came from.
        device: where.
        dtype: of activations and dense weights.

    Example:
        >>> runner(Operation.of("linear", rows=3, inputs=4, outputs=2), "cpu")().shape
        torch.Size([3, 2])
    """
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    if operation.format != DENSE and operation.source is not None:
        return _compressed(operation, operation.source, draw)
    return _MAKERS[operation.kind](operation, draw)


Draw = Callable[..., Tensor]


def _linear(o: Operation, draw: Draw) -> Callable[[], object]:
    x, weight = draw(o["rows"], o["inputs"]), draw(o["outputs"], o["inputs"])
    return lambda: F.linear(x, weight)


def _conv(o: Operation, draw: Draw) -> Callable[[], object]:
    spread = {
        part: [size for name, size in o.sizes if name.startswith(part)]
        for part in ("kernel", "input", "stride", "padding", "dilation")
    }
    spatial = [o[f"input{i}"] for i in range(len(spread["kernel"]))]
    channels = (o["inputs"], o["outputs"]) if o["transposed"] else (o["outputs"], o["inputs"])
    weight = draw(channels[0], channels[1] // o["groups"], *spread["kernel"])
    x = draw(o["images"], o["inputs"], *spatial)
    name = f"conv{'_transpose' * o['transposed']}{len(spatial)}d"
    function: Any = getattr(F, name)
    settings = {part: spread[part] for part in ("stride", "padding", "dilation")}
    return lambda: function(x, weight, groups=o["groups"], **settings)


def _embedding(o: Operation, draw: Draw) -> Callable[[], object]:
    table = draw(ROWS, o["width"])
    index = torch.arange(o["rows"], device=table.device) % ROWS
    return lambda: F.embedding(index, table)


def _attention(o: Operation, draw: Draw) -> Callable[[], object]:
    query = draw(1, o["heads"], o["queries"], o["width"])
    key = draw(1, o["heads"], o["keys"], o["width"])
    value = draw(1, o["heads"], o["keys"], o["value_width"])
    causal = bool(o["causal"])
    return lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def _product(o: Operation, draw: Draw) -> Callable[[], object]:
    a, b = draw(o["batch"], o["rows"], o["inner"]), draw(o["batch"], o["inner"], o["columns"])
    return lambda: torch.bmm(a, b)


def _experts(o: Operation, draw: Draw) -> Callable[[], object]:
    """Tokens spread evenly over the experts."""
    each = -(-o["routed"] // o["experts"])
    busy = -(-o["routed"] // each)
    x = draw(each, o["hidden"])
    up, down = draw(2 * o["inner"], o["hidden"]), draw(o["hidden"], o["inner"])

    def run() -> None:
        for _ in range(busy):
            gate, other = F.linear(x, up).chunk(2, dim=-1)
            F.linear(F.silu(gate) * other, down)

    return run


def _compressed(o: Operation, module: nn.Module, draw: Draw) -> Callable[[], object]:
    if isinstance(module, CompressedExperts):
        x = draw(o["routed"], o["hidden"])
        index = torch.arange(o["routed"], device=x.device)[:, None] % o["experts"]
        weights = draw(o["routed"], 1)
        return lambda: module(x, index, weights)
    if isinstance(module, CompressedConv1d | CompressedConv2d):
        dims = len(module.weight.shape) - 2
        x = draw(o["images"], o["inputs"], *(o[f"input{i}"] for i in range(dims)))
    else:
        x = draw(o["rows"], o["inputs"])
    return lambda: module(x)


_MAKERS: dict[str, Callable[[Operation, Draw], Callable[[], object]]] = {
    "linear": _linear,
    "conv": _conv,
    "embedding": _embedding,
    "attention": _attention,
    "product": _product,
    "experts": _experts,
}
