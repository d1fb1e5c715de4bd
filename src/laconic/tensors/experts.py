"""Fused experts of a mixture with compressed projections."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors.modules import CompressedModule, Slot
from laconic.tensors.stacked import Stacked


class CompressedExperts(CompressedModule):
    """Fused experts of a mixture: `gate_up_proj` (E, 2I, H) and `down_proj` (E, H, I) as stacks.

    Only the experts that a batch is routed to are decoded.
    """

    slot_names = ("gate_up_proj", "down_proj")

    def __init__(self, slots: Mapping[str, Slot], act_fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__(slots)
        self.act_fn = act_fn

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From the fused experts of transformers 5."""
        return cls(slots, module.act_fn)

    def forward(self, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`x` (N, H), each token's experts (N, k) and their weights (N, k), to (N, H)."""
        out = torch.zeros_like(x)
        for expert in torch.unique(top_k_index).tolist():
            token, slot = torch.where(top_k_index == expert)
            gate, up = self._project("gate_up_proj", expert, x[token]).chunk(2, dim=-1)
            result = self._project("down_proj", expert, self.act_fn(gate) * up)
            out.index_add_(0, token, (result * top_k_weights[token, slot, None]).to(out.dtype))
        return out

    def _project(self, slot: str, expert: int, x: Tensor) -> Tensor:
        """`x` (n, in) through one projection of one expert."""
        stack = self.records[slot].weight
        if not isinstance(stack, Stacked):
            raise UsageError(f"experts compute with a stack, found {type(stack).__name__}")
        inputs = self.transformed(x, slot)
        whole = self.operand(slot)
        assert isinstance(whole, Stacked)
        y = F.linear(self.quantized(inputs, slot), whole.slice(expert, x.dtype))
        first = expert * stack.per_slice
        self.show(x, inputs, y, slot, tuple(range(first, first + stack.per_slice)))
        return y
