"""How far images are from their originals: MSE, PSNR, SSIM and MS-SSIM, image by image.

Images are (B, C, H, W) with values in [0, 1]; results are (B,) float64.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.errors import BadWeights, UsageError

PRECISION = torch.float64
WINDOW, SIGMA = 11, 1.5  # the Gaussian of Wang et al., 2004
K1, K2 = 0.01, 0.03
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, Wang et al., 2003
BATCH = 16  # images in float64 at a time


def mse(image: Tensor, original: Tensor) -> Tensor:
    """Mean squared difference of each image (B,).

    Example:
        >>> mse(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2))
        tensor([0.2500], dtype=torch.float64)
    """
    return torch.cat([(x - y).square().mean(dim=(1, 2, 3)) for x, y in _pairs(image, original)])


def psnr(image: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB (B,), `-10 log10(MSE)`; infinite where they are equal.

    Example:
        >>> psnr(torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2))
        tensor([20.0000], dtype=torch.float64)
    """
    return -10 * mse(image, original).log10()


def ssim(image: Tensor, original: Tensor) -> Tensor:
    """Structural similarity (B,), at most 1 (Wang et al., 2004, equation 13).

    A Gaussian window of 11 pixels and deviation 1.5, only where it lies inside the image; channels
    count alike.

    Raises:
        UsageError: images below 11 pixels, of different shapes, or outside [0, 1].
        BadWeights: NaN.
    """
    _check_side(image, WINDOW, "ssim")
    return torch.cat([_similarity(x, y)[0].mean(dim=1) for x, y in _pairs(image, original)])


def ms_ssim(image: Tensor, original: Tensor) -> Tensor:
    """Structural similarity over five scales (B,) (Wang et al., 2003, equation 7).

    Scales are halved by means of 2 x 2 pixels; a scale's negative similarity counts as 0.

    Raises:
        UsageError: images below 176 pixels, of different shapes, or outside [0, 1].
        BadWeights: NaN.
    """
    _check_side(image, WINDOW << (len(WEIGHTS) - 1), "ms_ssim")
    return torch.cat([_over_scales(x, y) for x, y in _pairs(image, original)])


def _over_scales(x: Tensor, y: Tensor) -> Tensor:
    result = x.new_ones(x.shape[:2])
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        whole, structure = _similarity(x, y)
        factor = whole if scale == len(WEIGHTS) - 1 else structure
        result = result * factor.clamp(min=0) ** weight
    return result.mean(dim=1)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) each: luminance x contrast x structure, and without luminance."""
    c1, c2 = K1**2, K2**2
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x**2
    var_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * structure).mean(dim=(2, 3)), structure.mean(dim=(2, 3))


def _blurred(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) under the window, (B, C, H - 10, W - 10)."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    line = torch.exp(-(offset**2) / (2 * SIGMA**2))
    line = (line / line.sum()).repeat(x.shape[1], 1)
    rows = F.conv2d(x, line[:, None, :, None], groups=x.shape[1])
    return F.conv2d(rows, line[:, None, None, :], groups=x.shape[1])


def _pairs(image: Tensor, original: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both in float64, a few images at a time, once they are known to be images."""
    if image.shape != original.shape or image.ndim != 4 or not math.prod(image.shape):
        raise UsageError(
            f"images (B, C, H, W) of one shape are compared, found {tuple(image.shape)} and "
            f"{tuple(original.shape)}"
        )
    for x in (image, original):
        if not x.isfinite().all():
            raise BadWeights("an image holds NaN or infinity")
        if x.min() < 0 or x.max() > 1:
            low, high = x.min().item(), x.max().item()
            raise UsageError(f"values must be in [0, 1], found {low:g} to {high:g}: rescale, clamp")
    sides = (torch.split(x, BATCH) for x in (image, original))
    return [(x.to(PRECISION), y.to(PRECISION)) for x, y in zip(*sides)]


def _check_side(image: Tensor, least: int, name: str) -> None:
    if image.ndim != 4 or min(image.shape[2:]) < least:
        raise UsageError(
            f"{name} needs images (B, C, H, W) of at least {least} pixels a side, found "
            f"{tuple(image.shape)}"
        )
