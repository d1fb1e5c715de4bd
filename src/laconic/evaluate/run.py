"""`evaluate`: perplexity or accuracy, bytes and time; paired with a reference where there is one."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from laconic.calibrate.data import Labelled
from laconic.calibrate.inputs import Subject, read_inputs
from laconic.errors import UsageError
from laconic.loading import load
from laconic.measure.losses import (
    Batch,
    Losses,
    labelled_batches,
    language_batches,
    measure_losses,
)
from laconic.measure.paired import paired
from laconic.measure.resources import resident_bytes, stored_bytes
from laconic.measure.speed import speed_ratio
from laconic.models.memory import is_factory
from laconic.progress import SILENT, Progress

Slice = Literal["quick", "full"]
QUICK = {"text": 100, "labelled": 1000}  # windows, examples
BATCH = 8


@dataclass
class EvaluationReport:
    """What `evaluate` measured; a point for `laconic report`, JSON on disk.

    Attributes:
        model: what was evaluated.
        data: on what.
        task: `language` or `classification`.
        slice: `quick` or `full`.
        loss: mean nll of a prediction, nats.
        perplexity: its exponential; None for classifiers.
        accuracy: share of predictions that were right.
        tokens: predicted tokens, or examples.
        seconds: wall clock of the evaluation.
        stored_bytes: `st_size` of the weight files; None for a model in memory.
        resident_bytes: of the loaded weights.
        against: the paired comparison, if there was a reference: excess_log_perplexity, ci95,
            flips, kl_per_token, accuracy_change, speed_ratio, verdict, and the reference's model,
            stored_bytes and resident_bytes.
    """

    model: str
    data: str
    task: str
    slice: str
    loss: float
    perplexity: float | None
    accuracy: float
    tokens: int
    seconds: float
    stored_bytes: int | None
    resident_bytes: int
    against: dict[str, Any] | None = None
    kind: str = "evaluation"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def evaluate(
    model: str | Path | nn.Module, data: str | Path | torch.Tensor | Labelled,
    *, against: str | Path | nn.Module | None = None, slice: Slice = "full", batch: int = BATCH,
    device: str = "cpu", trust: bool = False, progress: Progress = SILENT,
) -> EvaluationReport:  # fmt: skip
    """Measures a model on data, and what it lost against a reference.

    Args:
        model: anything that `laconic.load` opens, or a module.
        data: for a language model a text file, a folder of `*.txt`, or windows (N, T); for a
            classifier `sentence TAB label` lines, images filed as class/name.jpg in a folder or
            tar, or a `Labelled` set.
        against: the reference; every window goes through both.
        slice: `quick` is the first 100 windows (1000 examples), `full` is all.
        batch: windows (examples) at a time; the result does not depend on it.
        device: where to compute.
        trust: see `laconic.load`.
        progress: follows the batches.

    Raises:
        DataError: the data is empty, too short or does not suit the model.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, found {batch}")
    candidate, resident = _open(model, device, trust)
    reference, dense = (None, 0) if against is None else _open(against, device, trust)
    task, batches = _batches(model, candidate, data, slice, batch)
    started = time.perf_counter()
    losses = measure_losses(
        candidate, batches, reference=reference, progress=progress, device=device
    )
    report = EvaluationReport(
        model=_name(model),
        data=str(data) if isinstance(data, str | Path) else type(data).__name__,
        task=task,
        slice=slice,
        loss=losses.mean,
        perplexity=math.exp(min(losses.mean, 700.0)) if task == "language" else None,
        accuracy=(losses.correct.sum() / losses.predictions.sum()).item(),
        tokens=int(losses.predictions.sum()),
        seconds=time.perf_counter() - started,
        stored_bytes=_stored(model),
        resident_bytes=resident,
    )
    if reference is not None:
        report.against = _against(losses, candidate, reference, batches[0], device)
        report.against |= {
            "model": _name(against), "stored_bytes": _stored(against), "resident_bytes": dense
        }  # fmt: skip
    return report


def compare(
    dense: str | Path | nn.Module, compressed: str | Path | nn.Module, data: Any, **options: Any
) -> EvaluationReport:
    """`evaluate(compressed, data, against=dense)`."""
    return evaluate(compressed, data, against=dense, **options)


def _open(model: Any, device: str, trust: bool) -> tuple[nn.Module, int]:
    """The model in fp32, and its resident bytes as it was stored."""
    loaded = model if isinstance(model, nn.Module) else load(model, trust=trust)
    resident = resident_bytes(loaded)
    if any(p.dtype != torch.float32 for p in loaded.parameters() if p.is_floating_point()):
        nn.Module.float(
            loaded
        )  # transformers forbids the method on compressed models; ours keep codes
    return loaded.to(device).eval(), resident


def _batches(
    model: Any, loaded: nn.Module, data: Any, slice: Slice, batch: int
) -> tuple[str, list[Batch]]:
    subject = Subject(loaded, _folder(model))
    inputs = read_inputs(data, subject, _limit(subject, slice))
    if isinstance(inputs, Labelled):
        kept = inputs.first(QUICK["labelled"]) if slice == "quick" else inputs
        return "classification", labelled_batches(kept, batch)
    return "language", language_batches(
        inputs[: QUICK["text"]] if slice == "quick" else inputs, batch
    )


def _limit(subject: Subject, slice: Slice) -> int | None:
    """How much of a file is wanted; None for all of it."""
    if slice not in ("quick", "full"):
        raise UsageError(f"slice must be quick or full, found {slice!r}")
    if slice == "full":
        return None
    return QUICK["text" if subject.takes == "text" else "labelled"]


def _against(
    losses: Losses, candidate: nn.Module, reference: nn.Module, batch: Batch, device: str
) -> dict[str, Any]:
    inputs = {name: value[:1].to(device) for name, value in batch[0].items()}

    def runner(model: nn.Module) -> Any:
        def call() -> None:
            _ = model(**inputs) if hasattr(model, "config") else model(*inputs.values())
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)

        return torch.inference_mode()(call)

    summary = paired(losses)
    return {
        **summary.to_json(),
        "verdict": summary.verdict,
        "speed_ratio": speed_ratio(runner(candidate), runner(reference)),
    }


def _name(model: Any) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def _folder(model: Any) -> Path | None:
    """Where the files of `model` are; None for a module, or a factory that was given no path."""
    if isinstance(model, nn.Module):
        return None
    text = str(model)
    if not is_factory(text):
        return Path(text)
    _, _, path = text.partition("@")
    return Path(path) if path else None


def _stored(model: Any) -> int | None:
    folder = _folder(model)
    return None if folder is None or not folder.is_dir() else stored_bytes(folder)
