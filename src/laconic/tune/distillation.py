"""`Distillation`: a loss for `train` that pulls a language model towards its teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import UsageError
from laconic.tune.distill import Divergence, hidden_mse, kl


class Distillation:
    """The distance of a student's answers from its teacher's, and of their hidden states if asked for.

    The loss is `logits + weight * hidden` with `weight = logits / hidden`, taken anew for each batch
    and without a gradient, so that both count the same.

    Args:
        teacher: takes what the student takes; is put into evaluation mode, and gets no gradients.
        divergence: of logits.
        layers: pairs of student and teacher hidden states to compare, as `hidden_states` counts them (0
            is the embedding).
        projection: of the student's hidden states to the teacher's width. Pass its parameters to the
            optimizer.

    Source: MINITRON (Muralidharan et al., 2024, arXiv 2407.14679), section 3.

    Example:
        >>> teacher, student = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> bool(Distillation(teacher)(student, torch.ones(1, 2)) > 0)
        True
    """

    def __init__(
        self, teacher: nn.Module, divergence: Divergence = kl,
        *, layers: Sequence[tuple[int, int]] = (), projection: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.teacher, self.divergence = teacher.eval(), divergence
        self.layers, self.projection = tuple(layers), projection

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of `model` on a batch: a mapping of arguments (`labels` are not used), or one tensor.

        Positions that its `attention_mask` leaves out do not count.
        """
        given = batch if isinstance(batch, Mapping) else {"": batch}
        given = {name: value for name, value in given.items() if name != "labels"}
        if self.layers:
            given["output_hidden_states"] = True
        with torch.no_grad():
            wanted = _call(self.teacher, given)
        found = _call(model, given)
        mask = given.get("attention_mask")
        logits, goal = (getattr(output, "logits", output) for output in (found, wanted))
        mask = mask if mask is not None and mask.shape == logits.shape[:-1] else None
        loss = self.divergence(logits, goal, mask=mask)
        if not self.layers:
            return loss
        hidden = self._hidden(found, wanted, mask)
        weight = loss.detach() / hidden.detach().clamp(min=torch.finfo(hidden.dtype).tiny)
        return loss + weight * hidden

    def _hidden(self, found: Any, wanted: Any, mask: Tensor | None) -> Tensor:
        terms = []
        for mine, theirs in self.layers:
            try:
                pair = found.hidden_states[mine], wanted.hidden_states[theirs]
            except (AttributeError, TypeError, IndexError) as error:
                raise UsageError(f"there are no hidden states {mine} and {theirs}") from error
            terms.append(hidden_mse(*pair, projection=self.projection, mask=mask))
        return torch.stack(terms).mean()


def _call(model: nn.Module, given: Mapping[str, Any]) -> Any:
    return model(given[""]) if "" in given else model(**given)
