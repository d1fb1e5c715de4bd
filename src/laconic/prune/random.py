"""Random pruning: the control that a criterion must beat to mean anything."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import UsageError
from laconic.method import Needs, Paper
from laconic.prune._scored import ScoredPruner
from laconic.tensors.patterns import DEFAULT, check


@dataclass(frozen=True)
class Random(ScoredPruner):
    """Zeros weights at random, the same ones on every machine: a control for other pruners.

    Args:
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: over what the share is counted: the whole `layer`, each `row` (output), or `n:m`,
            which keeps n of every m neighbours in a row, m up to 16.
        seed: 0 to 2^63 - 1; which weights go depends on it and on the name of the layer.

    Example:
        >>> uniform("model.layers.0.mlp.up_proj", 0, (1, 3)).round(decimals=3)
        tensor([[0.8850, 0.7500, 0.6190]], dtype=torch.float64)
    """

    sparsity: float = DEFAULT
    pattern: str = "layer"
    seed: int = 0

    paper = Paper(None, "The unreasonable effectiveness of random pruning", 2022, "2202.02643")
    needs = Needs.NOTHING
    taxonomy = ("pruning", "post-training", "unstructured", "semi-structured", "control")

    def __post_init__(self) -> None:
        check(self.sparsity, self.pattern)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed must be a whole number, 0 to 2^63 - 1, found {self.seed!r}")

    def score(self, rows: Tensor, stats: LayerStats) -> Tensor:
        """Independent of the weights, (R, C)."""
        return uniform(stats.layer.name, self.seed, rows.shape).to(rows.device)


def uniform(name: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1), float64 of `shape`: the same for the same name and seed everywhere.

    The bits are SplitMix64's (Steele, Lea, Flood, 2014), counted from a hash of name and seed, so
    that they do not depend on the version of a library.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    start = np.uint64(int.from_bytes(digest[:8], "little"))
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(golden) + start
    z = (z ^ z >> np.uint64(30)) * np.uint64(first)
    z = (z ^ z >> np.uint64(27)) * np.uint64(second)
    z ^= z >> np.uint64(31)
    values = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(values).reshape(shape)
