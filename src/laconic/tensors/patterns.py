"""Where zeros may lie: shares of rows or of layers, or all but n of every m neighbours.

A weight (out, in, ...) is seen as the matrix (R, C) of its outputs: neighbours of a convolution are
the places of its kernel, then its input channels.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.masked import Masked
from laconic.tensors.masks import Bitmask, Mask
from laconic.tensors.nofm import LONGEST_RUN, NofM

SHARES = ("row", "layer")  # over what a share of zeros is counted
DEFAULT = 0.5  # sparsity; with a pattern n:m it stands for 1 - n/m
SPARSITIES = tuple(round(0.1 * tenths, 1) for tenths in range(1, 10))


def run_of(pattern: str) -> tuple[int, int] | None:
    """(n, m) of a pattern `n:m`; None for `row` and `layer`."""
    n, colon, m = pattern.partition(":")
    return (int(n), int(m)) if colon else None


def check(sparsity: float, pattern: str, shares: Sequence[str] = SHARES) -> None:
    """Raises `UsageError` unless `sparsity` and `pattern` are settings that agree.

    Example:
        >>> check(0.75, "1:4")
    """
    names = " or ".join(map(repr, shares))
    if pattern not in shares:
        if not isinstance(pattern, str) or not re.fullmatch(r"\d{1,3}:\d{1,3}", pattern):
            hint = "" if isinstance(pattern, str) else "; in YAML, write '2:4' with its quotes"
            raise UsageError(
                f"pattern must be {names}, or n:m such as 2:4, found {pattern!r}{hint}"
            )
        n, m = run_of(pattern) or (0, 0)
        if not 1 <= n < m <= LONGEST_RUN:
            raise UsageError(
                f"a pattern n:m keeps n of every m neighbours, 1 <= n < m <= {LONGEST_RUN}, found "
                f"{pattern}"
            )
        if sparsity not in (DEFAULT, 1 - n / m):
            raise UsageError(
                f"pattern {pattern} has a sparsity of its own, {1 - n / m:.4g}, found {sparsity!r}; "
                f"leave sparsity out, or choose the pattern {names}"
            )
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UsageError(
            f"sparsity is the share of zeros, at least 0 and below 1 (0.5 is half), found {sparsity!r}"
        )


def strengths(pattern: str) -> list[tuple[float, str]]:
    """(sparsity, pattern) for a budget to choose from, weakest first: the same kind of pattern.

    Example:
        >>> strengths("2:4")
        [(0.5, '3:4'), (0.5, '2:4'), (0.5, '1:4')]
    """
    run = run_of(pattern)
    if run is None:
        return [(sparsity, pattern) for sparsity in SPARSITIES]
    return [(DEFAULT, f"{n}:{run[1]}") for n in range(run[1] - 1, 0, -1)]


def between(weaker: float, stronger: float, pattern: str, share: float) -> float | None:
    """The sparsity `share` of the way from one to another; None of n:m, which has none between."""
    return None if run_of(pattern) else round(weaker + share * (stronger - weaker), 6)


def keep_greatest(scores: Tensor, sparsity: float, pattern: str) -> Tensor:
    """Which of the `scores` (R, C) stay, (R, C) bool.

    Exactly `round(sparsity * size)` of each row, or of the layer, go; or all but n of every m
    neighbours. A last run of w < m columns keeps min(n, w). Of equal scores the first go.

    Args:
        scores: finite, the greater the more a weight is worth.
        sparsity: share of zeros; not looked at where the pattern is n:m.
        pattern: `row`, `layer` or `n:m`.

    Example:
        >>> keep_greatest(torch.tensor([[1.0, 3.0, 2.0, 4.0]]), 0.5, "row")
        tensor([[False,  True, False,  True]])
    """
    rows, columns = scores.shape
    run = run_of(pattern)
    if run is None:
        groups = scores.reshape(1, -1) if pattern == "layer" else scores
        zeros = round(sparsity * groups.shape[1])
        return _without_least(groups, zeros).reshape(rows, columns)
    n, m = run
    whole = columns // m * m
    body = _without_least(scores[:, :whole].reshape(-1, m), m - n).reshape(rows, whole)
    tail = _without_least(scores[:, whole:], max(0, columns - whole - n))
    return torch.cat([body, tail], dim=1)


def mask(keep: Tensor, pattern: str) -> Mask:
    """What `keep` (out, in, ...) keeps, as it is stored."""
    run = run_of(pattern)
    return Bitmask.of(keep) if run is None else NofM.of(keep, *run)


def masked(weight: Tensor, keep: Tensor, pattern: str) -> Masked:
    """`weight` (out, in, ...) where `keep` (R, C) says so, and exact zeros elsewhere."""
    return Masked.of(weight, mask(keep.reshape(weight.shape), pattern))


def filled_up(rows: Tensor, square: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (R, C) and a matrix (C, C) of their columns with a short last run filled up to m columns.

    The third of the result (C,) is where the old columns are.

    It is filled up with zeros that are tied to nothing. They stand before the run's own columns, so
    that of equal costs they go first, and a run of w columns keeps min(n, w) of its own.
    """
    columns = rows.shape[1]
    short = columns % m
    place = torch.arange(columns, device=rows.device)
    if not short:
        return rows, square, place
    place[columns - short :] += m - short
    wide = rows.new_zeros(len(rows), columns + m - short)
    wide[:, place] = rows
    large = torch.eye(wide.shape[1], dtype=square.dtype, device=square.device)
    large[place[:, None], place] = square
    return wide, large, place


def ragged_note(columns: int, pattern: str) -> str:
    """What should be noted where n:m does not divide a row; empty where it does."""
    run = run_of(pattern)
    left = 0 if run is None else columns % run[1]
    if run is None or not left:
        return ""
    return f"rows of {columns} are no multiple of {run[1]}: {min(run[0], left)} of the last {left} stay"


def _without_least(scores: Tensor, zeros: int) -> Tensor:
    """All but the `zeros` least of each row of `scores` (G, S), the first of those that are equal."""
    if zeros == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(zeros, dim=1, keepdim=True).values
    tied = scores == threshold
    gone = zeros - (scores < threshold).sum(dim=1, keepdim=True)  # of those that are tied
    return (scores > threshold) | (tied & (tied.cumsum(dim=1, dtype=torch.int32) > gone))
