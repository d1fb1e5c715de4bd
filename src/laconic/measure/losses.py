"""Losses of models on data, one at a time or paired, always in fp32.

Weights are the `dense()` values in fp32 and every sum is taken window by window in fp64. On a CPU
each window goes through the model alone and on one thread, labelled examples sixteen at a time, several
threads side by side: products of other heights, or split over threads, round differently, and batches of
1, 8 and 32 on any number of threads must give the same number. A GPU takes whole batches.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.calibrate.data import Labelled
from laconic.errors import DataError
from laconic.numerics.parallel import parallel_map
from laconic.numerics.precision import exact_products
from laconic.progress import SILENT, Progress
from laconic.tensors.decoded import kept_decoded

DECODED = 1 << 28  # bytes of decoded weights that are kept from window to window
Batch = tuple[
    dict[str, Tensor], Tensor
]  # inputs, targets (B, T) with -100 where nothing is predicted
IGNORE = -100
EXAMPLES = 16  # labelled ones that go through the model together
AT_LEAST = 4 * EXAMPLES  # of a batch, so that there is something to do for every thread


@dataclass
class Losses:
    """What a run over data gave, one entry for each window (example).

    Attributes:
        nll: (N,) fp64, summed over the predictions of a window.
        predictions: (N,) how many a window has.
        correct: (N,) how many of them the most likely class got right.
        flips: (N,) how many have another most likely class than the reference; paired runs only.
        kl: (N,) fp64, sum of KL(reference || model); paired runs only.
        reference: the reference model's losses; paired runs only.
    """

    nll: Tensor
    predictions: Tensor
    correct: Tensor
    flips: Tensor | None = None
    kl: Tensor | None = None
    reference: "Losses | None" = field(default=None)

    @property
    def mean(self) -> float:
        """Mean negative log-likelihood of a prediction, nats."""
        return (self.nll.sum() / self.predictions.sum()).item()


def language_batches(windows: Tensor, batch: int) -> list[Batch]:
    """Windows (N, T) as batches; every position but a window's first is predicted."""
    return [
        ({"input_ids": part}, F.pad(part[:, 1:], (0, 1), value=IGNORE))
        for part in torch.split(windows, batch)
    ]


def labelled_batches(data: Labelled, batch: int) -> list[Batch]:
    """Labelled examples, of one prediction each, in batches of whole runs of `EXAMPLES`, `batch` or more."""
    size = -(-max(batch, AT_LEAST) // EXAMPLES) * EXAMPLES
    return [(part.inputs, part.labels.unsqueeze(1)) for part in data.batches(size)]


@exact_products()
@torch.inference_mode()
def measure_losses(
    model: nn.Module, batches: Iterable[Batch],
    *, reference: nn.Module | None = None, progress: Progress = SILENT, device: str = "cpu",
) -> Losses:  # fmt: skip
    """Runs `model`, and beside it `reference`, over `batches`.

    Args:
        model: in evaluation mode; on a CPU several threads call it at the same time.
        batches: inputs and targets; on a CPU the windows of a batch (runs of `EXAMPLES` labelled ones) run
            side by side, as many at a time as torch has threads.
        reference: sees the same windows.
        progress: follows the batches.
        device: where the models are.

    Raises:
        DataError: there are no batches, or the data does not suit the model.
    """
    rows: list[Tensor] = []
    with kept_decoded(model, DECODED), kept_decoded(reference or nn.Module(), DECODED):
        for inputs, targets in progress.track(list(batches), "evaluating"):
            inputs = {name: value.to(device) for name, value in inputs.items()}
            rows += _rows(model, reference, inputs, targets.to(device))
    if not rows:
        raise DataError("there is no data to evaluate on")
    table = torch.stack(rows)
    losses = Losses(table[:, 0], table[:, 1], table[:, 2])
    if reference is not None:
        losses.flips, losses.kl = table[:, 3], table[:, 4]
        losses.reference = Losses(table[:, 5], table[:, 1], table[:, 6])
    return losses


def _rows(
    model: nn.Module, reference: nn.Module | None, inputs: dict[str, Tensor], targets: Tensor
) -> list[Tensor]:
    """The sums of each window of a batch."""

    def run(part: slice) -> list[Tensor]:
        given = {name: value[part] for name, value in inputs.items()}
        logits = _logits(model, given)
        others = [None] * len(logits) if reference is None else _logits(reference, given)
        return [_window(*row) for row in zip(logits, targets[part], others)]

    if targets.device.type != "cpu":
        return run(slice(None))
    together = EXAMPLES if targets.shape[1] == 1 else 1
    parts = [slice(i, i + together) for i in range(0, len(targets), together)]
    return [row for rows in parallel_map(run, parts) for row in rows]


def _window(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """(7,) fp64 sums of one window: logits (T, V), targets (T,)."""
    keep = targets != IGNORE
    logits, targets = logits[keep].float(), targets[keep]
    log_p = F.log_softmax(logits, dim=-1)
    best = logits.argmax(dim=-1)
    out = torch.zeros(7, dtype=torch.float64)
    out[0] = -log_p.gather(1, targets[:, None]).double().sum()
    out[1] = len(targets)
    out[2] = (best == targets).sum()
    if reference is not None:
        reference = reference[keep].float()
        log_q = F.log_softmax(reference, dim=-1)
        best_reference = reference.argmax(dim=-1)
        out[3] = (best != best_reference).sum()
        out[4] = (log_q.exp() * (log_q - log_p)).double().sum()
        out[5] = -log_q.gather(1, targets[:, None]).double().sum()
        out[6] = (best_reference == targets).sum()
    return out


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(B, T, V); a classifier's (B, C) becomes one prediction (B, 1, C)."""
    logits = _call(model, inputs)
    return logits if logits.ndim == 3 else logits.unsqueeze(1)


def _call(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    plain: Callable[..., object] = model
    try:
        output = plain(**inputs) if hasattr(model, "config") else plain(*inputs.values())
    except (TypeError, IndexError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{type(model).__name__} cannot take this data: {reason}") from error
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise DataError(f"{type(model).__name__} returned {type(output).__name__}, not logits")
    return logits
