import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve

from laconic.errors import BadWeights, UsageError
from laconic.measure.images import WEIGHTS, ms_ssim, mse, psnr, ssim


def images(count=2, side=32, channels=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(count, channels, side // 4, side // 4, generator=draw)
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear")


def noisy(x, size, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return (x + size * torch.randn(x.shape, generator=draw)).clamp(0, 1)


def test_error_and_its_ratio():
    x = torch.zeros(3, 1, 4, 4)
    y = torch.tensor([0.0, 0.1, 1.0]).reshape(3, 1, 1, 1).expand_as(x)
    assert mse(y, x).tolist() == pytest.approx([0, 0.01, 1])
    found = psnr(y, x).tolist()
    assert found[0] == math.inf and found[1:] == pytest.approx([20, 0], abs=1e-5)


def reference_ssim(x, y):
    """One channel, straight from the paper."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blur(a):
        return convolve(a, window, mode="constant")[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
    return (top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))).mean()


def test_similarity_as_in_the_paper():
    x, y = images(), noisy(images(), 0.1)
    pairs = zip(x.double().numpy(), y.double().numpy())
    expected = [np.mean([reference_ssim(a, b) for a, b in zip(p, q)]) for p, q in pairs]
    assert ssim(x, y).tolist() == pytest.approx(expected, rel=1e-9)


def test_flat_images_differ_in_luminance_alone():
    x, y = torch.full((1, 1, 176, 176), 0.5), torch.full((1, 1, 176, 176), 0.25)
    luminance = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert ssim(x, y).item() == pytest.approx(luminance)
    assert ms_ssim(x, y).item() == pytest.approx(luminance ** WEIGHTS[-1])


@given(st.integers(0, 5), st.floats(0.01, 0.5))
def test_similarity_is_symmetric_and_at_most_one(seed, size):
    x = images(seed=seed)
    y = noisy(x, size)
    assert torch.allclose(ssim(x, y), ssim(y, x)) and (ssim(x, y) < 1).all()
    assert torch.allclose(ssim(x, x), torch.ones(2).double())


def test_more_noise_is_further_away():
    x = images(1, 176)
    for measure in (ssim, ms_ssim, psnr):
        found = [measure(noisy(x, size), x).item() for size in (0.02, 0.1, 0.4)]
        assert found[0] > found[1] > found[2]
    assert ms_ssim(x, x).item() == pytest.approx(1)
    assert ms_ssim(1 - x, x).item() >= 0  # negative structure counts as none


def test_batches_are_taken_image_by_image():
    x, y = images(20), noisy(images(20), 0.1)
    for measure in (mse, psnr, ssim):
        whole = measure(y, x)
        assert whole.shape == (20,) and whole.dtype == torch.float64
        assert torch.allclose(whole, torch.cat([measure(a[None], b[None]) for a, b in zip(y, x)]))


def test_wrong_images():
    x = images()
    with pytest.raises(UsageError, match="one shape"):
        mse(x, x[:1])
    with pytest.raises(UsageError, match="one shape"):
        psnr(x[0], x[0])
    with pytest.raises(UsageError, match=r"in \[0, 1\], found 0"):
        ssim(255 * torch.ones(1, 1, 16, 16).triu(), torch.ones(1, 1, 16, 16))
    with pytest.raises(BadWeights):
        mse(x * torch.nan, x)
    with pytest.raises(UsageError, match="at least 11 pixels"):
        ssim(x[..., :10], x[..., :10])
    with pytest.raises(UsageError, match="at least 176 pixels"):
        ms_ssim(x, x)
