"""How far two sets of images are from each other, by features that a model sees in them.

Frechet distance (FID, Heusel et al., 2017) and kernel distance (KID, Binkowski et al., 2018). Sums
are float64 and taken batch by batch.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic.errors import BadWeights, DataError, UsageError
from laconic.numerics.parallel import one_thread
from laconic.tensors.modules import CompressedLinear

PRECISION = torch.float64
BATCH = 256
BLOCK = 1024  # rows and columns of a kernel matrix at a time

Extractor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, divided by N - 1.
        count: N.
    """

    mean: Tensor
    covariance: Tensor
    count: int


class FeatureMoments:
    """Gathers the moments of features that come batch by batch.

    Example:
        >>> gather = FeatureMoments()
        >>> gather.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> gather.moments().covariance
        tensor([[2., 0.],
                [0., 0.]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(0)
        self._scatter = torch.zeros(0)

    def update(self, features: Tensor) -> None:
        """Takes in features (B, D).

        Raises:
            BadWeights: NaN or infinity.
            UsageError: of another width than before, or not two-dimensional.
        """
        x = checked(features)
        if not self._count:
            self._mean, self._scatter = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        if x.shape[1] != len(self._mean):
            raise UsageError(f"features of {len(self._mean)} numbers, found {x.shape[1]}")
        if not len(x):
            return
        total = self._count + len(x)
        mean = x.mean(dim=0)
        shift = mean - self._mean  # of means: no large squares that cancel
        with one_thread():
            inside = (x - mean).T @ (x - mean)
        self._scatter += inside + torch.outer(shift, shift) * (self._count * len(x) / total)
        self._mean = self._mean + shift * (len(x) / total)
        self._count = total

    def moments(self) -> Moments:
        """Of everything so far; raises `DataError` with fewer than two."""
        if self._count < 2:
            raise DataError(f"a covariance needs at least two examples, found {self._count}")
        return Moments(self._mean, self._scatter / (self._count - 1), self._count)


def extract(extractor: Extractor, images: Tensor, batch: int = BATCH) -> Tensor:
    """Features (N, D) of images (N, ...), `batch` at a time; they end where the images are."""
    if not len(images) or batch < 1:
        raise DataError(f"no images to look at, or a batch of {batch}")
    with torch.inference_mode():
        parts = [
            extractor(part).flatten(1).to(images.device) for part in torch.split(images, batch)
        ]
    return torch.cat(parts)


def moments(features: Tensor | Iterable[Tensor]) -> Moments:
    """Mean and covariance of features (N, D), or of batches of them."""
    gather = FeatureMoments()
    for part in torch.split(features, BATCH) if isinstance(features, Tensor) else features:
        gather.update(part)
    return gather.moments()


def frechet_distance(first: Tensor | Moments, second: Tensor | Moments) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` of two sets of features (Heusel et al., 2017).

    The trace of the root is that of the symmetric `S C2 S` with S the root of C1, so that only
    symmetric matrices are decomposed and singular covariances do no harm.

    Args:
        first: features (N, D), or their moments.
        second: as many numbers a feature.

    Raises:
        UsageError: features of different widths.
        DataError: fewer than two examples.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> frechet_distance(x, x + 3)
        9.0
    """
    a, b = (x if isinstance(x, Moments) else moments(x) for x in (first, second))
    if a.mean.shape != b.mean.shape:
        raise UsageError(f"features of {len(a.mean)} and {len(b.mean)} numbers do not compare")
    with one_thread():
        root = _root(a.covariance)
        values = torch.linalg.eigvalsh(_symmetric(root @ b.covariance @ root))
    traces = a.covariance.trace() + b.covariance.trace()
    distance = (a.mean - b.mean).square().sum() + traces - 2 * values.clamp(min=0).sqrt().sum()
    return max(0.0, float(distance))


def kernel_distance(
    first: Tensor, second: Tensor, *, degree: int = 3, offset: float = 1.0, block: int = BLOCK
) -> float:
    """Unbiased squared maximum mean discrepancy with k(x, y) = (x.y / D + offset)^degree (KID).

    Args:
        first: features (N, D), N at least 2.
        second: features (M, D), M at least 2.
        degree: of the polynomial, at least 1.
        offset: added to the product.
        block: rows and columns of a kernel matrix that are in memory at a time.

    Returns:
        About 0 for sets of one distribution; an estimate without bias may be below.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> kernel_distance(x, x, degree=1)
        -2.0
    """
    a, b = checked(first), checked(second)
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"features of {a.shape[1]} and {b.shape[1]} numbers do not compare")
    if min(len(a), len(b)) < 2:
        raise DataError(f"at least two examples are needed, found {len(a)} and {len(b)}")
    if degree < 1 or block < 1:
        raise UsageError(f"degree and block must be at least 1, found {degree} and {block}")

    def kernel(product: Tensor) -> float:
        return float(((product / a.shape[1] + offset) ** degree).sum())

    def total(x: Tensor, y: Tensor) -> float:
        pairs = itertools.product(torch.split(x, block), torch.split(y, block))
        return sum(kernel(one @ other.T) for one, other in pairs)

    def within(x: Tensor) -> float:
        return (total(x, x) - kernel(x.square().sum(dim=1))) / (len(x) * (len(x) - 1))

    with one_thread():
        return within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b))


def penultimate(model: nn.Module) -> Extractor:
    """What the last linear layer of a classifier is given, as features.

    Args:
        model: in evaluation mode; its last linear layer (in the order of its modules) is the head.

    Returns:
        A function of images (B, C, H, W) to features (B, D).

    Raises:
        UsageError: the model has no linear layer, or does not call it.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2))
        >>> penultimate(model)(torch.tensor([[-1.0, 2.0, 3.0, -4.0]]))
        tensor([[0., 2., 3., 0.]])
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear | CompressedLinear)]
    if not heads:
        raise UsageError(f"{type(model).__name__} has no linear layer whose input is a feature")

    def features(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = heads[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            model(images)
        finally:
            handle.remove()
        if not seen:
            raise UsageError(f"{type(model).__name__} does not call its last linear layer")
        feature = seen[-1]
        return feature.flatten(1)

    return features


def checked(features: Tensor) -> Tensor:
    """Features (N, D) in float64, known to be finite."""
    if features.ndim != 2:
        raise UsageError(f"features must be (N, D), found {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise BadWeights("the features hold NaN or infinity")
    return features.to(PRECISION)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
