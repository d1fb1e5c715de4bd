import math

import pytest
import torch
from torch import nn

from laconic.errors import BadWeights, DataError, UsageError
from laconic.measure.features import (
    FeatureMoments,
    extract,
    frechet_distance,
    kernel_distance,
    moments,
    penultimate,
)
from laconic.tensors import IntQuantizer
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from laconic.zoo.resnet import resnet20
from tests.models.tiny import TINY


def normal(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_moments_do_not_depend_on_batches():
    x = normal(700, 5) * torch.tensor([1, 2, 3, 4, 1e-3]) + 1e4
    whole = moments(x)
    assert whole.count == 700 and torch.allclose(whole.mean, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(whole.covariance, torch.cov(x.double().T), rtol=1e-9, atol=1e-12)
    parts = moments([x[:1], x[1:1], x[1:30], x[30:]])
    assert torch.allclose(parts.covariance, whole.covariance, rtol=1e-9, atol=1e-12)


def test_distance_of_a_set_to_itself_is_nothing():
    x = normal(300, 12)
    assert frechet_distance(x, x) < 1e-9
    few = normal(4, 12)  # singular covariance
    assert frechet_distance(few, few) < 1e-9


def test_closed_forms():
    x = normal(500, 6).double()
    shift = torch.arange(6.0).double()
    assert frechet_distance(x, x + shift) == pytest.approx(shift.square().sum().item())
    variances = torch.cov(x.T).diagonal().sum().item()
    assert frechet_distance(x, 3 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(4 * variances)
    one, other = normal(40, 1).double(), 5 * normal(40, 1, 1).double() + 2
    gap, spread = one.mean() - other.mean(), one.std() - other.std()
    assert frechet_distance(one, other) == pytest.approx((gap**2 + spread**2).item())


def test_the_root_of_a_product_as_scipy_has_it():
    from scipy.linalg import sqrtm

    a, b = moments(normal(200, 7)), moments(normal(90, 7, 1) @ normal(7, 7, 2) + 1)
    root = sqrtm((a.covariance @ b.covariance).numpy()).real.trace()
    gap = (a.mean - b.mean).square().sum()
    expected = gap + a.covariance.trace() + b.covariance.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_kernel_distance_as_it_is_defined():
    x, y = normal(7, 3).double(), normal(5, 3, 1).double() + 0.5

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    across = sum(k(a, b) for a in x for b in y) / 35
    expected = (sum(within) - 2 * across).item()
    for block in (1, 3, 100):
        assert kernel_distance(x, y, block=block) == pytest.approx(expected)


def test_kernel_distance_is_unbiased():
    found = [kernel_distance(normal(20, 4, 2 * i), normal(20, 4, 2 * i + 1)) for i in range(200)]
    mean, spread = torch.tensor(found).mean().item(), torch.tensor(found).std().item()
    assert abs(mean) < 4 * spread / math.sqrt(200) and min(found) < 0
    assert kernel_distance(normal(50, 4), normal(50, 4, 1) + 1) > 5 * spread


def test_features_before_the_head():
    images = torch.rand(5, 3, 32, 32)
    model = resnet20().eval()
    found = extract(penultimate(model), images, batch=2)
    assert found.shape == (5, 64) and not any(m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert torch.allclose(model.fc(found), model(images), atol=1e-5)
    value = IntQuantizer(4, "row").quantize(model.fc.weight.detach())
    replace_module(model, "fc", {"weight": Record(value)})
    assert torch.allclose(extract(penultimate(model), images), found, atol=1e-5)
    vit = TINY["vit"].model()
    assert extract(penultimate(vit), torch.rand(2, 3, 16, 16)).shape == (2, 32)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return x


def test_wrong_use():
    x = normal(5, 3)
    with pytest.raises(UsageError, match="of 3 and 4 numbers"):
        frechet_distance(x, normal(5, 4))
    with pytest.raises(UsageError, match="of 3 and 4 numbers"):
        kernel_distance(x, normal(5, 4))
    with pytest.raises(UsageError, match=r"\(N, D\)"):
        frechet_distance(x[None], x)
    with pytest.raises(BadWeights, match="NaN"):
        kernel_distance(x, x * torch.nan)
    for function in (frechet_distance, kernel_distance):
        with pytest.raises(DataError, match="at least two"):
            function(x, x[:1])
    with pytest.raises(UsageError, match="degree"):
        kernel_distance(x, x, degree=0)
    gather = FeatureMoments()
    gather.update(x)
    with pytest.raises(UsageError, match="3 numbers, found 4"):
        gather.update(normal(2, 4))
    with pytest.raises(UsageError, match="no linear layer"):
        penultimate(nn.ReLU())
    with pytest.raises(UsageError, match="does not call"):
        penultimate(Idle())(x)
    with pytest.raises(DataError, match="no images"):
        extract(penultimate(Idle()), x[:0])
