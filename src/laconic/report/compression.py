"""What `compress` did."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class CompressionReport:
    """What `compress` did; a point for `laconic report`, JSON on disk.

    Attributes:
        method: name of the method.
        settings: its hyper-parameters.
        model: what was compressed.
        out: where it went; None in memory.
        stored_bytes: of the weight files; of the compressed values in memory.
        dense_bytes: of the uncompressed model.
        kept: stored / dense.
        bits_per_weight: stored, over the touched tensors.
        resident_bits_per_weight: in memory, over the touched tensors.
        seconds: wall clock.
        peak_rss_bytes: VmHWM of the process.
        layers: one report each.
        warnings: what the user should know.
        notes: what a method tells of its search.
        budget: as given, if it was.
    """

    method: str
    settings: dict[str, Any]
    model: str
    out: str | None
    stored_bytes: int
    dense_bytes: int
    kept: float
    bits_per_weight: float
    resident_bits_per_weight: float
    seconds: float
    peak_rss_bytes: int
    layers: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    budget: str | None = None
    kind: str = "compression"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
