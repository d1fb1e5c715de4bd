import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import BadWeights, UsageError
from laconic.tensors import IntQuantizer
from laconic.tensors.integer import SMALLEST_SCALE
from tests.tensors.strategies import quantizers, weights

GROUPS = (1, 5, 16, 64, "row", "tensor")


def bfloat16(value: np.float32) -> np.float32:
    return np.float32(torch.tensor(value).to(torch.bfloat16).float().item())


def reference(x: torch.Tensor, bits: int, group: int | str, symmetric: bool) -> torch.Tensor:
    """The docstring of IntQuantizer with minmax ranges, group by group, in scalars."""
    rows = x.reshape(x.shape[0] if x.ndim else 1, -1).float().numpy()
    if group == "tensor":
        rows = rows.reshape(1, -1)
    out = np.empty_like(rows)
    width = rows.shape[1] if isinstance(group, str) else group
    for r in range(rows.shape[0]):
        for start in range(0, rows.shape[1], width):
            values = rows[r, start : start + width]
            low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
            half = np.float32(2 ** (bits - 1))
            if symmetric:
                scale = max(max(-low, high) / half, min(-low, high) / (half - 1))
            else:
                scale = (high - low) / np.float32(2**bits - 1)
            scale = max(bfloat16(scale), np.float32(SMALLEST_SCALE))
            zero = half if symmetric else min(max(np.round(-low / scale), 0), 2**bits - 1)
            scale = -scale if symmetric and high >= -low else scale
            codes = np.clip(np.round(values / scale) + zero, 0, 2**bits - 1)
            out[r, start : start + width] = (codes - zero) * scale
    return torch.from_numpy(out).reshape(x.shape)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_matches_the_reference(bits, group, symmetric):
    x = torch.randn(6, 37)  # a ragged last group wherever there are groups
    quantizer = IntQuantizer(bits, group, symmetric)
    expected = reference(x, bits, group, symmetric)
    assert torch.equal(quantizer.project(x), expected)
    assert torch.equal(quantizer.quantize(x).dense(), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 20),
        torch.full((3, 20), 0.7),
        torch.full((3, 20), -0.7),
        -torch.rand(3, 20) - 1,
        torch.rand(3, 20) + 5,
        torch.randn(20),
        torch.tensor(1.5),
        torch.randn(4, 3, 2, 5),
        torch.randn(1, 1),
        torch.randn(7, 1),
    ],
    ids=["zero", "constant", "constant-", "negative", "positive", "1d", "0d", "4d", "1x1", "7x1"],
)
def test_odd_values_and_shapes_match_the_reference(x, group, symmetric):
    quantizer = IntQuantizer(4, group, symmetric)
    value = quantizer.quantize(x)
    assert torch.equal(value.dense(), reference(x, 4, group, symmetric))
    assert value.shape == x.shape


def test_a_group_wider_than_the_row_is_the_row():
    x = torch.randn(4, 10)
    assert torch.equal(IntQuantizer(3, 999).project(x), IntQuantizer(3, "row").project(x))
    assert IntQuantizer(3, 999).quantize(x).format == "int3 row"


def test_zero_stays_zero_and_extremes_are_kept():
    x = torch.tensor([[0.0, 4.0, -4.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    for symmetric in (True, False):
        y = IntQuantizer(8, "row", symmetric).project(x)
        assert (y[x == 0] == 0).all()
        assert (y - x).abs().max() <= 0.02


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2), (0, 0)])
@pytest.mark.parametrize("group", [4, "row", "tensor"])
@pytest.mark.parametrize("range_", ["minmax", "mse"])
def test_empty_tensors(shape, group, range_):
    for symmetric in (True, False):
        value = IntQuantizer(4, group, symmetric, range_).quantize(torch.zeros(shape))
        assert value.dense().shape == shape
        assert value.stored_bytes > 0


@given(weights(), quantizers)
@settings(max_examples=150)
def test_project_is_idempotent_on_a_fixed_grid(x, quantizer):
    params = quantizer.fit(x)
    once = quantizer.decode(quantizer.encode(x, params), params)
    assert torch.equal(quantizer.decode(quantizer.encode(once, params), params), once)


@given(weights(dtypes=(torch.float32,)), st.integers(2, 8), st.sampled_from(GROUPS))
def test_project_is_idempotent_for_symmetric_minmax(x, bits, group):
    """There the extremes are grid points, so that fitting again gives the same grid."""
    once = IntQuantizer(bits, group).project(x)
    assert torch.equal(IntQuantizer(bits, group).project(once), once)


@given(weights(), quantizers)
@settings(max_examples=150)
def test_codes_fit_and_errors_are_half_a_step(x, quantizer):
    params = quantizer.fit(x)
    codes = quantizer.encode(x, params)
    assert codes.dtype == torch.uint8 and codes.shape == x.shape
    assert not codes.numel() or int(codes.max()) < 2**quantizer.bits
    if quantizer.range == "minmax" and x.numel():
        error = (quantizer.decode(codes, params) - x.float()).abs().reshape(codes.shape)
        # half a step, and what bfloat16 shortens the grid by, which clips at the ends
        step = params.scale.abs().max() * (0.5 + 2 ** (quantizer.bits - 9) + 1e-3)
        assert error.max() <= step * (1 if quantizer.symmetric else 2)


def group_errors(x: torch.Tensor, y: torch.Tensor, group: int) -> torch.Tensor:
    short = -x.shape[1] % group
    lost = torch.nn.functional.pad((y.double() - x.double()) ** 2, (0, short))
    return lost.reshape(x.shape[0], -1, group).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_mse_range_never_loses_more_than_minmax_in_any_group(bits, symmetric, magnitude):
    x = torch.randn(16, 83) * magnitude
    x[:, ::17] *= 6
    minmax = IntQuantizer(bits, 16, symmetric, "minmax").project(x)
    mse = IntQuantizer(bits, 16, symmetric, "mse").project(x)
    before, after = group_errors(x, minmax, 16), group_errors(x, mse, 16)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("range_", ["minmax", "mse"])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-10, 1e10, 1e30])
def test_magnitude_does_not_matter(magnitude, range_, symmetric):
    x = torch.randn(8, 64)
    quantizer = IntQuantizer(4, 32, symmetric, range_)

    def error(factor: float) -> float:
        scaled = x.double() * factor
        y = quantizer.project(scaled.float()).double()
        return ((y - scaled).norm() / scaled.norm()).item()

    assert error(magnitude) == pytest.approx(error(1.0), rel=0.1)


def test_mse_of_a_whole_tensor_clips_an_outlier():
    x = torch.randn(20, 30)
    x[3, 4] = 8.0
    lost = {
        kind: (IntQuantizer(3, "tensor", range=kind).project(x) - x).square().sum()
        for kind in ("minmax", "mse")
    }
    assert lost["mse"] < lost["minmax"]


def test_searching_in_pieces_changes_nothing(monkeypatch):
    x = torch.randn(33, 20)
    whole = IntQuantizer(3, 8, range="mse").project(x)
    monkeypatch.setattr("laconic.tensors.integer.WEIGHTS_AT_ONCE", 50)
    assert torch.equal(IntQuantizer(3, 8, range="mse").project(x), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_dtypes_are_kept_and_computed_in_single_precision(dtype, bits):
    x = torch.randn(5, 48).to(dtype)
    value = IntQuantizer(bits, 16).quantize(x)
    assert value.dtype == value.dense().dtype == dtype
    assert IntQuantizer(bits, 16).project(x).dtype == dtype
    assert torch.equal(value.dense(torch.float32), reference(x, bits, 16, True))


def test_strided_input():
    x = torch.randn(12, 9)
    assert torch.equal(IntQuantizer(4, 4).project(x.T), IntQuantizer(4, 4).project(x.T.clone()))


@pytest.mark.parametrize(
    "settings_",
    [
        {"bits": 1}, {"bits": 9}, {"bits": 0}, {"bits": -4}, {"bits": 4.0}, {"bits": "4"},
        {"bits": None}, {"group": 0}, {"group": -1}, {"group": 2.5}, {"group": "column"},
        {"group": None}, {"range": "max"}, {"range": None},
    ],
)  # fmt: skip
def test_bad_settings(settings_):
    (name, _), *_ = settings_.items()
    with pytest.raises(UsageError, match=name):
        IntQuantizer(**settings_)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("range_", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_project_does_not_hide_what_went_wrong_before_it(bad, range_, symmetric):
    """As an activation quantizer it sees whatever the model computes; only that row is lost."""
    x = torch.randn(3, 8)
    x[1, 2] = bad
    y = IntQuantizer(8, "row", symmetric, range_).project(x)
    assert not y[1].isfinite().any() and y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_are_refused(bad, dtype):
    x = torch.randn(4, 8).to(dtype)
    x[2, 3] = bad
    with pytest.raises(BadWeights, match="NaN or infinity"):
        IntQuantizer().quantize(x)
