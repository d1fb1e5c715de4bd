"""Points: what runs left on disk, as JSON, gathered for tables and charts."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from laconic.errors import CorruptFile, DataError

REPORT_FILE = "laconic.json"  # what `compress` leaves in a model's directory


@dataclass
class Point:
    """One model: its bytes, its quality, and its layers.

    Attributes:
        name: short, unique in a report.
        method: and settings, in words; "dense" where nothing was compressed.
        stored_bytes: of its weight files.
        resident_bytes: in memory.
        kept: stored / dense bytes, if known.
        bits_per_weight: stored, over the touched tensors, if known.
        resident_bits_per_weight: in memory, if known.
        quality: perplexity or accuracy, if it was evaluated.
        metric: which of the two.
        excess: excess log-perplexity (or loss) against the dense model, nats.
        ci95: its interval.
        flips: share of predictions that changed.
        speed_ratio: against the dense model.
        layers: the layers' reports.
    """

    name: str
    method: str = "dense"
    stored_bytes: int | None = None
    resident_bytes: int | None = None
    kept: float | None = None
    bits_per_weight: float | None = None
    resident_bits_per_weight: float | None = None
    quality: float | None = None
    metric: str = ""
    excess: float | None = None
    ci95: tuple[float, float] | None = None
    flips: float | None = None
    speed_ratio: float | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def collect(paths: Iterable[Path]) -> list[Point]:
    """Points from JSON files of `evaluate --save`, model directories and folders of either.

    An evaluation and the compression of the same model become one point.

    Raises:
        DataError: a path holds no run.
        CorruptFile: a file is not JSON of a run.
    """
    points: dict[str, Point] = {}
    for path in paths:
        files = _run_files(path)
        if not files:
            raise DataError(
                f"{path}: no run there; expected JSON of `laconic evaluate --save` or a "
                "directory that `laconic compress` wrote"
            )
        for file in files:
            _merge(points, file)
    _shorten(points)
    return sorted(points.values(), key=lambda p: (p.bits_per_weight or 99, p.stored_bytes or 0))


def _run_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / REPORT_FILE).is_file():
        return [path / REPORT_FILE]
    return [*sorted(path.glob("*.json")), *sorted(path.glob(f"*/{REPORT_FILE}"))]


def _merge(points: dict[str, Point], file: Path) -> None:
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        kind = run["kind"]
        if kind == "evaluation":
            model = str(run["model"])
            _add_evaluation(points.setdefault(model, Point(model)), run)
            beside = Path(model) / REPORT_FILE
            if points[model].method == "dense" and beside.is_file():
                _merge(points, beside)
            if run["against"] is not None:
                dense = str(run["against"]["model"])
                _add_reference(points.setdefault(dense, Point(dense)), run)
        elif kind == "compression":
            model = str(run["out"])
            _add_compression(points.setdefault(model, Point(model)), run)
        else:
            raise ValueError(f"unknown kind {kind!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{file}: not a run of laconic: {error!r}") from error


def _add_evaluation(point: Point, run: dict[str, Any]) -> None:
    point.stored_bytes = run["stored_bytes"]
    point.resident_bytes = run["resident_bytes"]
    point.metric = "perplexity" if run["perplexity"] is not None else "accuracy"
    point.quality = run[point.metric]
    against = run["against"]
    if against is not None:
        point.excess = against["excess_log_perplexity"]
        point.ci95 = tuple(against["ci95"])
        point.flips, point.speed_ratio = against["flips"], against["speed_ratio"]


def _add_reference(point: Point, run: dict[str, Any]) -> None:
    """What a paired run says of the dense model."""
    point.excess = 0.0
    point.stored_bytes = run["against"]["stored_bytes"]
    point.resident_bytes = run["against"]["resident_bytes"]
    point.kept = 1.0
    if point.quality is None:
        against = run["against"]
        point.metric = "perplexity" if run["perplexity"] is not None else "accuracy"
        if point.metric == "perplexity":
            point.quality = run["perplexity"] / math.exp(against["excess_log_perplexity"])
        else:
            point.quality = run["accuracy"] - against["accuracy_change"]


def _add_compression(point: Point, run: dict[str, Any]) -> None:
    settings = " ".join(f"{key}={value}" for key, value in run["settings"].items())
    budget = f" budget {run['budget']}" if run.get("budget") else ""
    point.method = f"{run['method']} {settings}{budget}"
    point.stored_bytes = run["stored_bytes"]
    point.kept = run["kept"]
    point.bits_per_weight = run["bits_per_weight"]
    point.resident_bits_per_weight = run["resident_bits_per_weight"]
    point.layers = run["layers"]


def _shorten(points: dict[str, Point]) -> None:
    """Last path components as names, where that leaves them unique."""
    short = {name: Path(name).name or name for name in points}
    if len(set(short.values())) == len(points):
        for name, point in points.items():
            point.name = short[name]
