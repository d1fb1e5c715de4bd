import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import BadWeights, CorruptFile, UsageError
from laconic.tensors import Bitmask, MaskedCodes
from laconic.tensors.compressed import State, from_state
from laconic.tensors.deadzone import DeadZone, dead_zone_codes, dead_zone_values
from laconic.tensors.stored import decode, encode
from laconic.tune.tunable import Tunable
from tests.plain import plain
from tests.tensors.strategies import dead_zones, same_bits, weights

EDGE, STEP = torch.tensor(0.5), torch.tensor(1.0)


def by_definition(value: DeadZone) -> torch.Tensor:
    """The docstring's formula, weight by weight."""
    rows = value.shape[0] if value.shape else 1
    codes = value.codes().reshape(rows, -1) if value.numel else value.codes()
    out = torch.zeros(codes.shape)
    for r, c in codes.nonzero().tolist():
        at = (0, 0) if value.edge.numel() == 1 else (r, c // value.group)
        k = codes[r, c]
        out[r, c] = k.sign() * ((k.abs() - 0.5) * value.step[at] + value.edge[at])
    return out.reshape(value.shape).to(value.dtype)


@given(value=dead_zones())
def test_is_what_the_formula_says(value):
    if value.numel:
        assert same_bits(value.dense() + 0.0, by_definition(value) + 0.0)


@given(value=dead_zones())
def test_both_decoders_agree_to_the_bit(value):
    whole = value._dense_by_torch().reshape(value.shape)
    assert torch.equal(value.dense(torch.float32), whole)


@given(value=dead_zones())
def test_bytes_come_back(value):
    blob = encode(value)
    back = decode(blob)
    assert isinstance(back, DeadZone) and encode(back) == blob
    assert torch.equal(back.codes(), value.codes()) and back.format == value.format
    assert same_bits(back.dense(), value.dense()) and back.shape == value.shape


@given(value=dead_zones())
def test_codes_come_back_from_codes(value):
    again = DeadZone.from_codes(
        value.codes(), value.edge, value.step, dtype=value.dtype, group=value.group
    )
    assert torch.equal(again.packed, value.packed) and again.bits == value.bits


@given(weights(dtypes=(torch.float32,)), st.floats(0.01, 3), st.floats(0.01, 3))
def test_values_are_the_middles_of_what_rounds_to_them(weight, edge, step):
    value = DeadZone.of(weight, torch.tensor(edge), torch.tensor(step))
    gone = weight.abs() < 0.999 * edge
    assert (value.codes()[gone] == 0).all()
    lost = (value.dense() - weight).abs()[~gone & (value.codes() != 0)]
    assert (lost <= step / 2 * (1 + 1e-4) + 1e-5).all()


@given(st.floats(-50, 50), st.floats(0.05, 5), st.floats(0.05, 5))
def test_the_map_and_its_inverse(x, edge, step):
    given_ = [torch.tensor(v, dtype=torch.float64) for v in (x, edge, step)]
    codes = dead_zone_codes(*given_)
    assert dead_zone_values(codes, *given_[1:]) == pytest.approx(x, rel=1e-9, abs=1e-9)
    further = dead_zone_codes(given_[0] + 1e-3, *given_[1:])
    assert further > codes  # it rises


def test_gradients_reach_all_three():
    x = torch.tensor([0.2, -0.3, 0.9, -4.0], dtype=torch.float64, requires_grad=True)
    sides = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.7)]
    assert torch.autograd.gradcheck(dead_zone_codes, (x, *sides))
    codes = torch.tensor([0.2, -0.3, 1.4, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dead_zone_values, (codes, *sides))


@pytest.mark.parametrize("farthest", [1, 127, 128, 255, 300, 32767])
def test_codes_of_any_size(farthest):
    codes = torch.zeros(64, 64, dtype=torch.int64)
    codes[0, :3] = torch.tensor([farthest, -farthest, 1])
    value = DeadZone.from_codes(codes, EDGE, STEP, dtype=torch.float32)
    assert torch.equal(value.codes().long(), codes) and value.bits == (2 * farthest).bit_length()
    assert torch.equal(decode(encode(value)).codes().long(), codes)
    assert value.dense()[0, 0] == farthest


def test_few_large_codes_cost_the_small_ones_nothing():
    codes = torch.randint(-1, 2, (256, 256))
    small = DeadZone.from_codes(codes, EDGE, STEP, dtype=torch.float32).stored_bytes
    codes[::64, 0] = 3000
    assert DeadZone.from_codes(codes, EDGE, STEP, dtype=torch.float32).stored_bytes < small + 200


def test_takes_the_bytes_of_its_entropy():
    weight = torch.randn(256, 512)
    value = DeadZone.of(weight, torch.tensor(0.6), torch.tensor(1.0))
    share = value.codes().unique(return_counts=True)[1] / weight.numel()
    entropy = float(-(share * share.log2()).sum()) * weight.numel() / 8
    assert entropy < value.stored_bytes < 1.01 * entropy + 400


def test_zeros_take_only_a_header():
    value = DeadZone.of(torch.zeros(512, 512), EDGE, STEP)
    assert value.stored_bytes < 400 and (value.dense() == 0).all() and value.bits == 1


def test_behind_a_mask_and_tuned():
    weight = torch.randn(9, 16)
    value = DeadZone.of(weight, EDGE, STEP)
    keep = weight > 0
    masked = MaskedCodes.of(value, Bitmask.of(keep))
    assert torch.equal(masked.dense(), torch.where(keep, value.dense(), 0))
    tunable = Tunable.of(value, ["edge", "step"])
    tunable.dense().square().sum().backward()
    assert all(p.grad.abs() > 0 for p in tunable.values.values())
    assert same_bits(tunable.settled().dense(), value.dense())


def test_kernel_as_plain_python():
    copy = plain("laconic.tensors.deadzone")
    value = DeadZone.of(
        torch.randn(5, 7), torch.full((5, 3), 0.3), torch.full((5, 3), 0.2), group=3
    )
    out = torch.empty(5, 7).numpy()
    index = torch.arange(5).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "unpack_run", plain("laconic.coding.bitpack").unpack_run)
        copy._decode(
            value.packed.numpy(), value.bits, 3, value.edge.numpy(), value.step.numpy(), index, out
        )
    assert torch.equal(torch.from_numpy(out), value.dense())


class TestBadInput:
    @pytest.mark.parametrize("side", [0.0, -1.0, float("nan"), float("inf")])
    def test_grids(self, side):
        for pair in ((torch.tensor(side), STEP), (EDGE, torch.tensor(side))):
            with pytest.raises(UsageError, match="finite and above 0"):
                DeadZone.of(torch.ones(2, 3), *pair)

    def test_codes_too_far(self):
        with pytest.raises(UsageError, match="take a larger step"):
            DeadZone.of(torch.tensor([[1.0]]), torch.tensor(1e-6), torch.tensor(1e-6))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights(self, bad):
        with pytest.raises(BadWeights, match="NaN or infinity"):
            DeadZone.of(torch.tensor([[1.0, bad]]), EDGE, STEP)

    def test_shapes(self):
        codes = torch.zeros(4, 6, dtype=torch.int32)
        for edge, step, match in (
            (torch.ones(2, 2), torch.ones(2, 2), "edge must be float32"),
            (torch.ones(4, 2), STEP, "must have the shape of step"),
            (EDGE, torch.ones(4, 3), "step must be float32"),
        ):
            with pytest.raises(UsageError, match=match):
                DeadZone.from_codes(codes, edge, step, dtype=torch.float32, group=3)
        with pytest.raises(UsageError, match="group must be"):
            DeadZone.from_codes(codes, EDGE, STEP, dtype=torch.float32, group=-1)

    def test_states(self):
        state = DeadZone.of(torch.randn(4, 6), EDGE, STEP).state()

        def changed(meta=None, **arrays):
            return State(state.kind, state.meta | (meta or {}), state.arrays | arrays)

        assert isinstance(from_state(changed()), DeadZone)
        for bad in (
            changed(step=torch.tensor([[float("nan")]])),
            changed(edge=torch.ones(3, 3)),
            changed(edge=torch.ones(1, 1).double()),
            changed(codes=state.arrays["codes"][:-1]),
            changed(codes=torch.full_like(state.arrays["codes"], 255)),
            changed({"bits": 17}), changed({"group": 0}), changed({"shape": [5, 6]}),
        ):  # fmt: skip
            with pytest.raises(CorruptFile):
                from_state(bad)
