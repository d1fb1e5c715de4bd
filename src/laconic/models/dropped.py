"""Modules that stand for parts of a transformer that are left out."""

from typing import Any

import torch
from torch import Tensor, nn


class DroppedAttention(nn.Module):
    """Stands for an attention: adds nothing to the residual stream.

    Attributes:
        layer_idx: the slot of the KV cache in which it counts tokens, where no attention is left
            that would; None otherwise.
    """

    layer_idx: int | None = None

    def forward(
        self, hidden_states: Tensor, *_: Any, past_key_values: Any = None, **__: Any
    ) -> tuple[Tensor, None]:
        """Zeros in the shape of `hidden_states` (B, T, H), and no attention weights."""
        _count_tokens(self.layer_idx, hidden_states, past_key_values)
        return torch.zeros_like(hidden_states), None


class DroppedMLP(nn.Module):
    """Stands for a feed-forward part, dense or with experts: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Zeros in the shape of `hidden_states`."""
        return torch.zeros_like(hidden_states)


class DroppedBlock(nn.Module):
    """Stands for a whole block: passes the residual stream on.

    Attributes:
        layer_idx: as for `DroppedAttention`.
    """

    layer_idx: int | None = None

    def forward(
        self, hidden_states: Tensor, *others: Any, past_key_values: Any = None, **_: Any
    ) -> Tensor:
        """`hidden_states` as it is."""
        caches = [past_key_values, *(other for other in others if hasattr(other, "get_seq_length"))]
        _count_tokens(
            self.layer_idx, hidden_states, next((c for c in caches if c is not None), None)
        )
        return hidden_states


DROPPED = (DroppedAttention, DroppedMLP, DroppedBlock)


def _count_tokens(slot: int | None, hidden_states: Tensor, cache: Any) -> None:
    if slot is not None and cache is not None:
        tokens = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
        cache.update(tokens, tokens, slot)
