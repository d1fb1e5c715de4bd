from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors import Binary, BinaryQuantizer
from tests.tensors.strategies import weights

SETTINGS = [
    {"bits": 1},
    {"bits": 3},
    {"bits": 2, "group": 8},
    {"bits": 4, "group": 16, "offset": True},
]


def lost(quantizer: BinaryQuantizer, x: torch.Tensor) -> float:
    return float((quantizer.project(x).double() - x).square().sum())


@pytest.mark.parametrize("given_", SETTINGS, ids=str)
def test_is_what_the_formula_says(given_):
    value = BinaryQuantizer(**given_).quantize(torch.randn(6, 21))
    signs, codes = 2.0 * value.signs() - 1, value.codes()
    for r, c in product(range(6), range(21)):
        g = c // value.group
        total = torch.tensor(0.0) if value.offset is None else value.offset[r, g].float()
        for i in range(value.bits):
            assert (int(codes[r, c]) >> i & 1) == (signs[i, r, c] > 0)
            total = total + signs[i, r, c] * value.alpha[i, r, g].float()
        assert value.dense()[r, c] == total


@pytest.mark.parametrize("given_", SETTINGS, ids=str)
def test_every_weight_has_the_nearest_level(given_):
    x = torch.randn(6, 21)
    value = BinaryQuantizer(**given_).quantize(x)
    alpha = value.alpha.float().repeat_interleave(value.group, 2)[:, :, :21]
    levels = [
        sum(s * a for s, a in zip(signs, alpha)) for signs in product((-1, 1), repeat=value.bits)
    ]
    offset = 0 if value.offset is None else value.offset.float().repeat_interleave(16, 1)[:, :21]
    nearest = torch.stack([(x - level - offset).abs() for level in levels]).amin(0)
    assert torch.allclose((x - value.dense()).abs(), nearest, atol=1e-5)


@given(weights(), st.integers(1, 5), st.sampled_from(["row", 8, 16]), st.booleans())
@settings(max_examples=60)
def test_refining_never_loses(x, bits, group, offset):
    greedy = BinaryQuantizer(bits, group, offset, iterations=0).project(x).float()
    refined = BinaryQuantizer(bits, group, offset).project(x).float()
    before, after = ((x.float() - y).square().sum() for y in (greedy, refined))
    assert after <= before * (1 + 1e-5) + 1e-6


def test_one_plane_is_the_mean_magnitude():
    x = torch.randn(5, 64)
    value = BinaryQuantizer(1, iterations=0).quantize(x)
    assert torch.equal(value.alpha[0, :, 0], x.abs().mean(1).bfloat16())


def test_more_planes_smaller_groups_and_offsets_lose_less():
    x = torch.randn(16, 128) + 0.5
    by_bits = [lost(BinaryQuantizer(bits), x) for bits in range(1, 6)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert lost(BinaryQuantizer(3, 16), x) < lost(BinaryQuantizer(3, 64), x) < by_bits[2]
    assert lost(BinaryQuantizer(1, offset=True), x) < by_bits[0]


def test_planes_of_powers_of_two_hold_a_uniform_grid():
    x = torch.arange(-7.5, 8).repeat(3, 4)
    assert torch.allclose(BinaryQuantizer(4).project(x), x, atol=0.03)


def test_any_magnitude():
    x = torch.randn(4, 32)
    for scale in (1e-30, 1e-10, 1e10, 1e30):
        relative = lost(BinaryQuantizer(4), x * scale) / scale**2
        assert relative == pytest.approx(lost(BinaryQuantizer(4), x), rel=0.05)


def test_bits_in_memory():
    value = BinaryQuantizer(3, 64, offset=True).quantize(torch.randn(16, 128))
    assert value.resident_bytes == 16 * 128 * 3 // 8 + 16 * 2 * (3 + 1) * 2
    assert (value.bits, value.format) == (3, "binary3 g64 offset")
    assert BinaryQuantizer(2).quantize(torch.randn(4, 8)).format == "binary2 row"


@pytest.mark.parametrize("given_", SETTINGS, ids=str)
@pytest.mark.parametrize("inputs", [0, 1, 2, 3])
def test_looks_sums_up_for_few_inputs(given_, inputs, monkeypatch):
    value = BinaryQuantizer(**given_).quantize(torch.randn(30, 45))
    x, bias = torch.randn(inputs, 45), torch.randn(30)
    weight = value.dense()
    with monkeypatch.context() as patch:
        if inputs <= 2:
            patch.setattr(Binary, "dense", None)
        y, plain = value.matmul(x, bias), value.matmul(x)
    assert torch.allclose(y, F.linear(x, weight, bias), atol=1e-4)
    assert torch.allclose(plain, F.linear(x, weight), atol=1e-4)


def test_inputs_that_want_gradients_are_multiplied():
    value, x = (
        BinaryQuantizer().quantize(torch.randn(8, 16)),
        torch.randn(1, 16, requires_grad=True),
    )
    value.matmul(x).sum().backward()
    assert torch.allclose(x.grad[0], value.dense().sum(0), atol=1e-4)


@pytest.mark.parametrize(
    "given_", [
        {"bits": 0}, {"bits": 9}, {"bits": 2.0}, {"group": 12}, {"group": "tensor"}, {"group": 0},
        {"iterations": -1}, {"iterations": 0.5},
    ],
)  # fmt: skip
def test_settings(given_):
    with pytest.raises(UsageError, match=next(iter(given_))):
        BinaryQuantizer(**given_)


def test_parts_that_do_not_fit():
    shape, planes = torch.Size((4, 20)), torch.zeros(2, 4, 3, dtype=torch.uint8)
    alpha = torch.ones(2, 4, 1)
    Binary(shape, torch.float32, 20, planes, alpha)
    for group, parts, match in [
        (10, (planes, alpha), "multiple of 8"),
        (20, (planes.int(), alpha), "planes must be"),
        (20, (planes[0], alpha), "planes must be"),
        (20, (planes.repeat(5, 1, 1), alpha), "planes must be"),
        (20, (planes[:, :, :2], alpha), "do not fill"),
        (20, (planes, alpha[:1]), "alpha must be"),
        (20, (planes, alpha, torch.ones(4)), "offset must be"),
    ]:
        with pytest.raises(UsageError, match=match):
            Binary(shape, torch.float32, group, *parts)
