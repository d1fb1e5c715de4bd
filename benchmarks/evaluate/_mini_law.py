"""Small language models of bytes that are trained in a format: weights are projected to it in every step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from laconic.calibrate.data import read_text
from laconic.numerics.parallel import one_thread
from laconic.progress import SILENT
from laconic.tensors import IntQuantizer
from laconic.tune.batches import Shuffled
from laconic.tune.estimators import ste_sparse
from laconic.tune.loop import train
from laconic.tune.schedules import cosine

CONTEXT, BATCH = 128, 32  # bytes of a window; windows
UNSEEN = 128  # windows that losses are measured on
RATE = 3e-3
WIDTHS = {48: 2, 80: 3, 128: 4}  # blocks by hidden size: 0.06, 0.23 and 0.8 million weights

Projection = Callable[[Tensor], Tensor]


class Trained(NamedTuple):
    """What a run left: weights of its blocks, bytes that it saw, its loss on unseen text."""

    parameters: int
    tokens: int
    loss: float


def through(quantizer: IntQuantizer, weight: Tensor) -> Tensor:
    """The projection to a grid; the gradient passes unchanged."""
    return weight + (quantizer.project(weight) - weight).detach()


def two_of_four(weight: Tensor) -> Tensor:
    """The greater two of every four neighbours; the gradient passes to all."""
    runs = weight.detach().abs().reshape(-1, 4)
    keep = torch.zeros_like(runs).scatter_(1, runs.topk(2, dim=1).indices, 1).reshape(weight.shape)
    return weight * keep + (weight - weight.detach()) * (1 - keep)


def half_of_int4(weight: Tensor) -> Tensor:
    """The greater half, on a grid of 4 bits."""
    return through(IntQuantizer(4, 32), ste_sparse(weight, 0.5, "all"))


#: By the format as `laconic capacity` spells it.
PROJECTIONS: dict[str, Projection | None] = {
    "dense": None,
    "rtn:bits=4,group=32,range=minmax": partial(through, IntQuantizer(4, 32)),
    "rtn:bits=2,group=32,range=minmax,symmetric=false": partial(
        through, IntQuantizer(2, 32, False)
    ),
    "magnitude:sparsity=0.5": lambda w: ste_sparse(w, 0.5, "all"),
    "magnitude:pattern=2:4": two_of_four,
    "magnitude:sparsity=0.5+rtn:bits=4,group=32,range=minmax": half_of_int4,
}
BACKWARDS: dict[str, Projection] = {
    rule: partial(ste_sparse, share=0.25, backward=rule)  # type: ignore[arg-type]
    for rule in ("kept", "banded", "near", "all")
}


class Projected(nn.Module):
    """A parametrization: the weight as the format has it."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, weight: Tensor) -> Tensor:
        return self.projection(weight)


def run(
    data: Path, width: int, steps: int, projection: Projection | None, seed: int = 0
) -> Trained:
    """Trains a model of a width, and measures it in its format."""
    windows = _bytes(data / "text/train.txt", steps * BATCH)
    unseen = _bytes(data / "text/valid.txt", UNSEEN)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=WIDTHS[width],
        num_attention_heads=width // 16, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    layers = [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    count = sum(layer.weight.numel() for layer in layers)
    for layer in layers if projection is not None else ():
        nn.utils.parametrize.register_parametrization(layer, "weight", Projected(projection))  # type: ignore[arg-type]
    with one_thread():
        train(
            model, Shuffled({"input_ids": windows}, BATCH), _loss,
            optimizer=torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0), steps=steps,
            schedule=partial(cosine, warmup=0.1), clip=1.0, precision="fp32", progress=SILENT,
        )  # fmt: skip
        with torch.no_grad():
            loss = _loss(model.eval(), {"input_ids": unseen})
    return Trained(count, steps * BATCH * CONTEXT, float(loss))


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    logits: Any = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _bytes(path: Path, count: int) -> Tensor:
    """The first windows of a text, as bytes, (count, CONTEXT)."""
    raw = read_text(path).encode()[: count * CONTEXT]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()[: len(raw) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)  # fmt: skip
