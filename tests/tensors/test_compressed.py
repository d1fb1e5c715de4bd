import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from laconic.errors import CorruptFile, UsageError
from laconic.tensors import ChannelScale, Dense, Grouped, IntQuantizer, Stacked
from laconic.tensors.compressed import State, from_state, register_kind, registered_kinds
from laconic.tensors.stored import decode, encode
from tests.tensors.strategies import compressed_tensors, grouped, same_bits, stacks, weights


@given(compressed_tensors)
@settings(max_examples=250)
def test_round_trip_and_exact_sizes(value):
    blob = encode(value)
    back = decode(blob)
    assert type(back) is type(value)
    assert (back.shape, back.dtype, back.format) == (value.shape, value.dtype, value.format)
    assert same_bits(back.dense(), value.dense())
    assert encode(back) == blob
    assert value.stored_bytes == len(blob)
    assert value.resident_bytes == sum(t.nbytes for t in value.tensors().values())
    assert back.resident_bytes == value.resident_bytes
    assert value.numel == value.dense().numel()


@given(compressed_tensors)
def test_state_round_trip_without_bytes(value):
    assert same_bits(from_state(value.state()).dense(), value.dense())


@given(compressed_tensors, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_dense_in_any_dtype_is_rounded_once(value, dtype):
    assert same_bits(value.dense(dtype), value.dense(torch.float32).to(dtype))


@given(grouped)
@settings(max_examples=250)
def test_kernel_and_torch_dequantize_alike(value):
    kernel = value.dense(torch.float32)
    assert same_bits(value._dense_by_torch().reshape(value.shape), kernel)


@given(compressed_tensors, st.data())
@settings(max_examples=150)
def test_rows_are_those_of_the_dense_weight(value, data):
    assume(len(value.shape) > 0 and value.shape[0] > 0)
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    count = torch.Size(shape).numel()
    numbers = st.lists(st.integers(0, value.shape[0] - 1), min_size=count, max_size=count)
    index = torch.tensor(data.draw(numbers), dtype=torch.int64).reshape(shape)
    assert same_bits(value.rows(index), value.dense()[index])
    assert same_bits(value.rows(index, torch.float32), value.dense(torch.float32)[index])


@pytest.mark.parametrize("number", [-1, 5, 2**40, -(2**40)])
def test_rows_that_are_not_there(number):
    """The kernel must not read whatever lies behind its table."""
    x = torch.randn(5, 8)
    for value in (Dense(x), IntQuantizer().quantize(x), Stacked((Dense(x),) * 5)):
        with pytest.raises(IndexError):
            value.rows(torch.tensor([[0, number]]))
        assert value.rows(torch.zeros(0, dtype=torch.int64)).numel() == 0


@given(weights(shapes=st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(2, 8))
def test_matmul_is_linear_with_the_dense_weight(weight, bits):
    for value in (Dense(weight), IntQuantizer(bits, 4).quantize(weight)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = torch.randn(2, 3, weight.shape[1]).to(dtype)
            y = value.matmul(x)
            assert y.dtype == dtype
            assert torch.equal(y, F.linear(x, value.dense(dtype)))


@given(compressed_tensors)
def test_moving_to_where_it_is_changes_nothing(value):
    assert value.to("cpu") is value
    assert value.to(torch.device("cpu")) is value


@given(compressed_tensors)
def test_replacing_all_tensors_makes_an_equal_value(value):
    copied = value.replace_tensors({name: t.clone() for name, t in value.tensors().items()})
    assert copied is not value
    assert same_bits(copied.dense(), value.dense())


def test_moving_to_another_device_moves_every_tensor():
    x = torch.randn(4, 6)
    values = [Dense(x), IntQuantizer(4, 4, symmetric=False).quantize(x)]
    values.append(Stacked(tuple(values)))
    for value in values:
        moved = value.to("meta")
        assert {t.device.type for t in moved.tensors().values()} == {"meta"}
        assert (moved.shape, moved.format) == (value.shape, value.format)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_stored_below_their_entropy_and_then_some(bits):
    """At rest int codes take about their entropy, never more than their bits and a header."""
    value = IntQuantizer(bits, "row").quantize(torch.randn(64, 512))
    codes = value.codes().reshape(-1).numpy()
    share = np.bincount(codes, minlength=2**bits) / codes.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * codes.size / 8
    side = value.scale.nbytes + 600
    assert value.stored_bytes <= entropy * 1.01 + side
    assert value.resident_bytes == codes.size * bits // 8 + value.scale.nbytes


class TestGrouped:
    @given(weights(), st.integers(2, 8), st.integers(1, 12), st.booleans())
    def test_from_codes_keeps_the_codes(self, weight, bits, group, symmetric):
        quantizer = IntQuantizer(bits, group, symmetric)
        params = quantizer.fit(weight)
        codes = quantizer.encode(weight, params)
        value = quantizer.pack(codes, params, weight)
        assert torch.equal(value.codes(), codes)
        assert torch.equal(value.dense(torch.float32), quantizer.decode(codes, params))

    @pytest.mark.parametrize(
        ("group", "symmetric", "expected"),
        [
            (4, True, "int3 g4"), (4, False, "int3 g4 asymmetric"), ("row", True, "int3 row"),
            ("tensor", True, "int3 tensor"), ("tensor", False, "int3 tensor asymmetric"),
        ],
    )  # fmt: skip
    def test_format(self, group, symmetric, expected):
        assert IntQuantizer(3, group, symmetric).quantize(torch.randn(4, 8)).format == expected

    @pytest.mark.parametrize(
        "change",
        [
            {"bits": 1}, {"bits": 9}, {"group": 0}, {"packed": torch.zeros(7, dtype=torch.uint8)},
            {"scale": torch.ones(4, 3)}, {"zero": torch.zeros(2, 2, dtype=torch.uint8)},
            {"shape": torch.Size((4, 9))},
        ],
        ids=lambda change: next(iter(change)),
    )  # fmt: skip
    def test_parts_that_do_not_fit(self, change):
        value = IntQuantizer(4, 4, symmetric=False).quantize(torch.randn(4, 8))
        fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
        with pytest.raises(UsageError):
            Grouped(**fields | change)


class TestDense:
    def test_nothing_is_lost(self):
        x = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45])
        assert same_bits(decode(encode(Dense(x))).dense(), x)

    def test_bf16_weights_are_stored_smaller(self):
        x = (torch.randn(256, 256) * 0.02).bfloat16()
        assert Dense(x).stored_bytes < 0.75 * x.nbytes


class TestStacked:
    @given(stacks())
    def test_slices_are_those_of_the_dense_weight(self, value):
        dense = value.dense()
        assert dense.shape == value.shape
        for number in range(value.shape[0]):
            assert same_bits(value.slice(number), dense[number])

    @pytest.mark.parametrize(
        ("parts", "per_slice"),
        [((), 1), ((2, 2), 0), ((2, 2, 2), 2), ((2, 3), 1), ((2, 3, 3, 2), 2)],
    )
    def test_parts_that_make_no_slices(self, parts, per_slice):
        with pytest.raises(UsageError):
            Stacked(tuple(Dense(torch.zeros(rows, 4)) for rows in parts), per_slice)

    def test_parts_of_other_widths(self):
        with pytest.raises(UsageError, match="columns"):
            Stacked((Dense(torch.zeros(2, 3)), Dense(torch.zeros(2, 4))))

    def test_does_not_multiply_as_a_whole(self):
        with pytest.raises(UsageError, match="slice"):
            Stacked((Dense(torch.zeros(2, 3)),)).matmul(torch.zeros(1, 3))


class TestKinds:
    def test_unknown_kind_names_the_nearest(self):
        with pytest.raises(CorruptFile, match="grouped"):
            from_state(State("gruoped", {}))

    def test_every_kind_is_registered_under_its_name(self):
        assert {"dense", "grouped", "stacked", "channel scale"} <= set(registered_kinds())
        assert all(cls.kind == kind for kind, cls in registered_kinds().items())

    def test_a_kind_is_claimed_once(self):
        class Impostor(Dense):
            kind = "dense"

        with pytest.raises(UsageError, match="two classes"):
            register_kind(Impostor)
        register_kind(Dense)  # again is fine


def test_torch_functions_do_not_take_compressed_weights():
    value = Dense(torch.eye(3))
    assert torch.overrides.has_torch_function((value,))
    with pytest.raises(TypeError):
        F.linear(torch.eye(3), value)


def test_values_are_compared_by_identity():
    """Comparing tensors element by element is not a truth value."""
    value = IntQuantizer().quantize(torch.randn(3, 3))
    assert value == value and value != IntQuantizer().quantize(torch.randn(3, 3))
    assert len({value, value}) == 1


def test_torchs_functions_refuse_it():
    with pytest.raises(TypeError):
        torch.add(Dense(torch.ones(2)), 1)
    with pytest.raises(TypeError):
        F.linear(torch.ones(1, 2), Dense(torch.ones(2, 2)))


def test_parts_of_another_sort():
    state = ChannelScale(torch.ones(3)).state()
    with pytest.raises(CorruptFile, match="a channel scale, a CompressedTensor is expected"):
        from_state(State("sum", {}, parts={"0": state}))
