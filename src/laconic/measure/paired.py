"""Paired comparison: the same windows through two models, differences with a bootstrap interval."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.measure.losses import Losses

RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Paired:
    """What a model costs against its reference, on the same data.

    Attributes:
        excess_log_perplexity: mean nll minus the reference's, nats.
        ci95: its 95 % bootstrap interval over windows.
        flips: share of predictions whose most likely class differs.
        kl_per_token: mean KL(reference || model), nats.
        accuracy_change: share of correct predictions minus the reference's.
    """

    excess_log_perplexity: float
    ci95: tuple[float, float]
    flips: float
    kl_per_token: float
    accuracy_change: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def verdict(self) -> str:
        """`worse` or `better` where the interval excludes 0, otherwise `tie`."""
        low, high = self.ci95
        return "worse" if low > 0 else "better" if high < 0 else "tie"


def paired(losses: Losses) -> Paired:
    """Summary of a paired run; raises `UsageError` if there was no reference."""
    if losses.reference is None or losses.flips is None or losses.kl is None:
        raise UsageError("the losses were measured without a reference")
    difference = losses.nll - losses.reference.nll
    total = losses.predictions.sum()
    return Paired(
        excess_log_perplexity=(difference.sum() / total).item(),
        ci95=bootstrap(difference, losses.predictions),
        flips=(losses.flips.sum() / total).item(),
        kl_per_token=(losses.kl.sum() / total).clamp(min=0).item(),
        accuracy_change=((losses.correct - losses.reference.correct).sum() / total).item(),
    )


def bootstrap(values: Tensor, weights: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of `sum(values) / sum(weights)` over resampled windows (Efron, 1979).

    Args:
        values: (N,) per window.
        weights: (N,) per window.
        level: of the interval.
    """
    generator = torch.Generator().manual_seed(SEED)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values[picks].sum(dim=1) / weights[picks].sum(dim=1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high
