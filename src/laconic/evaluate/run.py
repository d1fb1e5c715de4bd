"""`evaluate`: perplexity or accuracy, bytes and time; paired with a reference where there is one."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from laconic.calibrate.data import (
    Labelled,
    image_statistics,
    read_images,
    read_sentences,
    read_text,
    windows,
)
from laconic.errors import DataError, UsageError
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
    config = getattr(loaded, "config", None)
    if isinstance(data, torch.Tensor):
        return "language", language_batches(data[: _limit("text", slice)], batch)
    if isinstance(data, Labelled):
        return "classification", labelled_batches(_first(data, slice), batch)
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    kind = type(loaded).__name__
    if "ForImageClassification" in kind or config is None:
        size = getattr(config, "image_size", 32)
        folder = None if config is None or isinstance(model, nn.Module) else Path(model)
        limit = QUICK["labelled"] if slice == "quick" else None
        images = read_images(path, size, *image_statistics(folder, size), limit)
        return "classification", labelled_batches(images, batch)
    tokenizer = _tokenizer(model)
    if "ForSequenceClassification" in kind:
        limit = min(128, getattr(config, "max_position_embeddings", 128))
        sentences = read_sentences(path, tokenizer, limit)
        return "classification", labelled_batches(_first(sentences, slice), batch)
    context = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", 2048
    )
    rows = windows(read_text(path), tokenizer, context)
    return "language", language_batches(rows[: _limit("text", slice)], batch)


def _limit(kind: str, slice: Slice) -> int | None:
    if slice not in ("quick", "full"):
        raise UsageError(f"slice must be quick or full, found {slice!r}")
    return QUICK[kind] if slice == "quick" else None


def _first(data: Labelled, slice: Slice) -> Labelled:
    limit = _limit("labelled", slice)
    return data if limit is None else data.first(limit)


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    if isinstance(model, nn.Module):
        raise UsageError(
            "a module in memory has no tokenizer: give windows (N, T) of token numbers"
        )
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{model}: no tokenizer to read text with: {reason}") from error


def _against(
    losses: Losses, candidate: nn.Module, reference: nn.Module, batch: Batch, device: str
) -> dict[str, Any]:
    inputs = {name: value[:1].to(device) for name, value in batch[0].items()}

    def runner(model: nn.Module) -> Any:
        call = (
            (lambda: model(**inputs))
            if hasattr(model, "config")
            else (lambda: model(*inputs.values()))
        )
        return torch.inference_mode()(call)

    summary = paired(losses)
    return {
        **summary.to_json(),
        "verdict": summary.verdict,
        "speed_ratio": speed_ratio(runner(candidate), runner(reference)),
    }


def _name(model: Any) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def _stored(model: Any) -> int | None:
    if isinstance(model, nn.Module):
        return None
    text = str(model)
    folder = Path(text.partition("@")[2] if is_factory(text) else text)
    return stored_bytes(folder) if folder.is_dir() and folder != Path() else None
