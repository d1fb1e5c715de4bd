"""Global ranking: the units of all layers compete, and those with the lowest scores are dropped.

What a unit is (an element, a row, a head, a channel group) and what its score means is the method's
business; here the threshold is found, with limits for single layers and with units that go together.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from laconic.errors import UsageError, did_you_mean

PRECISION = torch.float64  # of sums of sizes; scores are compared as they are, bit by bit

Masks = dict[str, Tensor]  # by layer, True where a unit is dropped
Sizes = Mapping[str, Tensor | float] | Callable[[Masks], float]


def drop_lowest(
    scores: Mapping[str, Tensor], target: float,
    *, sizes: Sizes | None = None, least: float | Mapping[str, float] = 0.0,
    most: float | Mapping[str, float] = 1.0,
) -> Masks:  # fmt: skip
    """Drops the lowest-scored units of all layers together, as many as fit into `target`.

    All units are in one order: by score, equals by layer in the order of `scores` and by position
    in the layer. The longest beginning of it whose size is at most `target` is dropped. The
    threshold is found by bisection over the bit patterns of the scores, without sorting all of them
    (LLM Surgeon, van der Ouderaa et al., 2024, arXiv 2312.17244, step 5, with ties settled).

    Args:
        scores: by layer a floating-point tensor of any shape and on any device; infinity protects a
            unit.
        target: upper limit of the size that is dropped, in the unit of `sizes`.
        sizes: of a unit, by layer, as one number or a tensor in the shape of the scores; 1 by
            default. Or a function of the masks, for sizes that overlap (rows and columns); it must
            not shrink when more is dropped.
        least: share of the units of each layer (or by name) that are dropped in any case, the
            lowest-scored ones.
        most: share of the units of each layer (or by name) that may be dropped.

    Returns:
        By layer a mask in the shape of the scores, True where a unit is dropped.

    Raises:
        UsageError: scores that are not floating-point or hold NaN, shares outside 0..1, `least`
            above `most`, unknown layers, or a target that `least` alone exceeds.

    Example:
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 1.0, 9.0])}
        >>> {name: mask.tolist() for name, mask in drop_lowest(scores, 3).items()}
        {'a': [False, True], 'b': [True, True, False]}
    """
    _check(scores)
    measure = sizes if callable(sizes) else _adder(scores, sizes)
    lowest, limit = _counts(scores, least, 0.0), _counts(scores, most, 1.0)
    keys = {}
    for name, score in scores.items():
        key = _keys(score)
        if lowest[name] > min(limit[name], int((key < PROTECTED).sum())):
            raise UsageError(f"{name}: {lowest[name]} units must be dropped, fewer may be")
        keys[name] = _limited(key, lowest[name], limit[name])

    def below(bound: int) -> Masks:
        return {n: (k < bound).reshape(scores[n].shape) for n, k in keys.items()}

    low, high = FORCED + 1, PROTECTED
    forced = measure(below(low))
    if forced > target:
        raise UsageError(f"the units that are dropped in any case have size {forced} of {target:g}")
    if measure(below(high)) <= target:
        return below(high)
    while high - low > 1:  # below(low) fits, below(high) does not
        middle = (low + high) // 2
        low, high = (middle, high) if measure(below(middle)) <= target else (low, middle)
    return _ties(below(low), keys, low, measure, target)


def grouped(
    scores: Mapping[str, Tensor], groups: Mapping[str, Tensor], *, reduce: str = "sum"
) -> tuple[Tensor, Tensor]:
    """Scores and sizes of units that go together, such as the elements of a row or coupled channels.

    Args:
        scores: by layer.
        groups: by layer, in the shape of the scores, the number of each unit's group, 0..G-1; layers
            may share groups. A negative number belongs to none.
        reduce: `"sum"`, `"mean"` or `"max"` of the members' scores.

    Returns:
        (G,) scores, float64, infinity for a number that no unit has; (G,) how many units each has.

    Example:
        >>> rows = {"a": torch.tensor([[0, 0], [1, 1]])}
        >>> score, size = grouped({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, rows)
        >>> score.tolist(), size.tolist()
        ([3.0, 7.0], [2.0, 2.0])
        >>> dropped = drop_lowest({"rows": score}, 2, sizes={"rows": size})["rows"]
        >>> ungrouped(dropped, rows)["a"].tolist()
        [[True, True], [False, False]]
    """
    _check(scores)
    if reduce not in ("sum", "mean", "max"):
        raise UsageError(f"reduce must be 'sum', 'mean' or 'max', found {reduce!r}")
    labels = torch.cat([groups[name].reshape(-1) for name in scores])
    values = torch.cat([score.reshape(-1).to(PRECISION) for score in scores.values()])
    if labels.shape != values.shape:
        raise UsageError("groups must have the shapes of the scores")
    values, labels = values[labels >= 0], labels[labels >= 0].long()
    count = int(labels.max()) + 1 if len(labels) else 0
    size = torch.bincount(labels, minlength=count).to(PRECISION)
    if reduce == "max":
        start = values.new_full((count,), -torch.inf)
        total = start.scatter_reduce(0, labels, values, "amax")
    else:
        total = torch.bincount(labels, weights=values, minlength=count)
        total = total / size.clamp(min=1) if reduce == "mean" else total
    return torch.where(size > 0, total, torch.inf), size


def ungrouped(dropped: Tensor, groups: Mapping[str, Tensor]) -> Masks:
    """The masks of layers from that of their groups: (G,) `dropped`, group numbers by layer."""
    none = torch.cat([dropped, dropped.new_zeros(1)])  # -1 looks up the last: belongs to no group
    return {name: none[label.clamp(min=-1).long()] for name, label in groups.items()}


def linear_schedule(final: float, shots: int, *, start: float = 0.0) -> list[float]:
    """What is to be gone after each of `shots` rounds: equal steps from `start` to `final`.

    Example:
        >>> linear_schedule(0.5, 4)
        [0.125, 0.25, 0.375, 0.5]
    """
    return [final if s == shots else start + (final - start) * s / shots for s in _shots(shots)]


def cubic_schedule(final: float, shots: int, *, start: float = 0.0) -> list[float]:
    """As `linear_schedule`, most at the beginning (Zhu and Gupta, 2017, arXiv 1710.01878, eq. 1).

    Example:
        >>> cubic_schedule(0.8, 2)
        [0.7000000000000001, 0.8]
    """
    return [final + (start - final) * (1 - s / shots) ** 3 for s in _shots(shots)]


PROTECTED = 0x7FF << 52  # the bits of infinity
FORCED = -PROTECTED - 1  # below those of -infinity


def _shots(shots: int) -> range:
    if shots < 1:
        raise UsageError(f"shots must be 1 or more, found {shots}")
    return range(1, shots + 1)


def _check(scores: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        if not score.is_floating_point():
            raise UsageError(f"{name}: scores must be floating-point, found {score.dtype}")
        if torch.isnan(score).any():
            raise UsageError(f"{name}: a score is not a number")


def _adder(
    scores: Mapping[str, Tensor], sizes: Mapping[str, Tensor | float] | None
) -> Callable[[Masks], float]:
    """The summed size of what masks drop."""
    given = sizes if sizes is not None else dict.fromkeys(scores, 1.0)
    for name, score in scores.items():
        size = given.get(name)
        if size is None or (isinstance(size, Tensor) and size.shape != score.shape):
            raise UsageError(f"{name}: sizes must be one number or have the shape of the scores")
        if not bool(torch.as_tensor(size).ge(0).all()):
            raise UsageError(f"{name}: a size is negative or not a number")

    def total(masks: Masks) -> float:
        parts = []
        for name, mask in masks.items():
            size = given[name]
            if isinstance(size, Tensor):
                parts.append(float(size[mask].sum(dtype=PRECISION)))
            else:
                parts.append(size * int(mask.sum()))
        return sum(parts)

    return total


def _counts(
    scores: Mapping[str, Tensor], shares: float | Mapping[str, float], default: float
) -> dict[str, int]:
    """How many units of each layer a share is; rounded, so that exact counts come back."""
    by_name = shares if isinstance(shares, Mapping) else dict.fromkeys(scores, shares)
    unknown = sorted(set(by_name) - set(scores))
    if unknown:
        raise UsageError(f"there is no layer {unknown[0]!r}; {did_you_mean(unknown[0], scores)}")
    for name, share in by_name.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name}: a share must be in 0..1, found {share!r}")
    return {name: round(by_name.get(name, default) * s.numel()) for name, s in scores.items()}


def _keys(score: Tensor) -> Tensor:
    """(N,) int64 in the order of the scores, 0 and -0 equal; `PROTECTED` for infinity."""
    bits = score.reshape(-1).to(PRECISION).view(torch.int64)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFFFFFFFFFF), bits)


def _limited(keys: Tensor, lowest: int, limit: int) -> Tensor:
    """The first `lowest` units in the layer's order become forced, those after `limit` protected."""
    if lowest == 0 and limit >= len(keys):
        return keys
    order = torch.argsort(keys, stable=True)
    keys = keys.clone()
    keys[order[limit:]] = PROTECTED
    keys[order[:lowest]] = FORCED
    return keys


def _ties(
    masks: Masks, keys: dict[str, Tensor], bound: int, measure: Callable[[Masks], float], target: float
) -> Masks:  # fmt: skip
    """Adds units whose key is `bound`, in order, while they fit."""
    tied = {name: (key == bound).nonzero().reshape(-1) for name, key in keys.items()}
    total = sum(len(place) for place in tied.values())

    def with_first(count: int) -> Masks:
        added = {}
        for name, place in tied.items():
            mask = masks[name].reshape(-1).clone()
            mask[place[: max(0, count)]] = True
            added[name] = mask.reshape(masks[name].shape)
            count -= len(place)
        return added

    low, high = 0, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(with_first(middle)) <= target else (low, middle)
    return with_first(low)
