"""What every kind of compressed tensor, mask and input transform must do.

A new kind adds a strategy to `tests.tensors.strategies`: to `KINDS`, `MASKS` or `TRANSFORMS`.
"""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from laconic.coding.framing import Compact, Section
from laconic.errors import CorruptFile, LaconicError, UsageError
from laconic.tensors import CompressedTensor, Dense, InputTransform, Mask
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import from_state, registered_kinds
from laconic.tensors.stored import CODEC, HEADER, Record, decode, decode_record, encode
from tests.tensors.strategies import KINDS, MASKS, TRANSFORMS, same_bits

#: Kinds whose values are found by sums, which may round differently for one row and for all.
SUMMED = {"low rank", "transformed", "sum", "stacked"}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of |x| @ |W|.T + |bias|


def kinds_of(base):
    return {kind for kind, cls in registered_kinds().items() if issubclass(cls, base)}


def test_every_kind_has_its_strategy():
    assert set(KINDS) == kinds_of(CompressedTensor)
    assert set(MASKS) == kinds_of(Mask)
    assert set(TRANSFORMS) == kinds_of(InputTransform)


def examples(kind, data):
    value = data.draw(KINDS[kind])
    assert value.kind == kind
    return value


@pytest.mark.parametrize("kind", KINDS)
class TestEveryTensor:
    @given(data=st.data())
    @settings(max_examples=60)
    def test_bytes_come_back(self, kind, data):
        value = examples(kind, data)
        blob = encode(value)
        back = decode(blob)
        assert type(back) is type(value)
        assert (back.shape, back.dtype, back.format) == (value.shape, value.dtype, value.format)
        assert same_bits(back.dense(), value.dense())
        assert encode(back) == blob == encode(value)
        assert value.stored_bytes == len(blob)
        held = value.tensors()
        assert value.resident_bytes == sum(tensor.nbytes for tensor in held.values())
        assert {n: (t.dtype, t.shape) for n, t in back.tensors().items()} == {
            n: (t.dtype, t.shape) for n, t in held.items()
        }

    @given(data=st.data())
    @settings(max_examples=30)
    def test_the_state_alone_is_enough(self, kind, data):
        value = examples(kind, data)
        assert same_bits(from_state(value.state()).dense(), value.dense())

    @given(data=st.data())
    @settings(max_examples=30)
    def test_dense_has_shape_and_dtype_and_is_rounded_once(self, kind, data):
        value = examples(kind, data)
        whole = value.dense(torch.float32)
        assert value.dense().shape == value.shape and value.dense().dtype == value.dtype
        assert value.numel == whole.numel()
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            assert same_bits(value.dense(dtype), whole.to(dtype))

    @given(data=st.data())
    @settings(max_examples=60)
    def test_multiplies_as_the_dense_weight(self, kind, data):
        value = examples(kind, data)
        if len(value.shape) != 2:
            return
        generator = torch.Generator().manual_seed(0)
        lead = data.draw(st.sampled_from([(), (1,), (2,), (2, 3), (0, 2), (40,)]))
        for dtype, tolerance in TOLERANCE.items():
            x = torch.randn(*lead, value.shape[1], generator=generator).to(dtype)
            bias = torch.randn(value.shape[0], generator=generator)
            weight = value.dense(dtype)
            for b in (None, bias):
                y = value.matmul(x, b)
                expected = F.linear(x, weight, None if b is None else b.to(dtype))
                assert (y.dtype, y.shape) == (dtype, expected.shape)
                scale = F.linear(x.abs().float(), weight.abs().float(), bias.abs())
                assert ((y - expected).abs() <= tolerance * scale * 4 + 1e-6).all()

    @given(data=st.data())
    @settings(max_examples=60)
    def test_rows_are_those_of_the_dense_weight(self, kind, data):
        value = examples(kind, data)
        if not value.shape or not value.shape[0]:
            return
        lead = data.draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,)]))
        index = torch.randint(value.shape[0], lead, generator=torch.Generator().manual_seed(1))
        for dtype in (None, torch.float32):
            rows, expected = value.rows(index, dtype), value.dense(dtype)[index]
            assert (rows.dtype, rows.shape) == (expected.dtype, expected.shape)
            if kind in SUMMED:
                scale = expected.abs().max() if expected.numel() else torch.tensor(0)
                assert torch.allclose(rows, expected, atol=0.02 * float(scale), rtol=0.02)
            else:
                assert same_bits(rows, expected)
        with pytest.raises(IndexError):
            value.rows(torch.tensor([value.shape[0]]))

    @given(data=st.data())
    @settings(max_examples=30)
    def test_tensors_are_replaced_by_name_and_moved(self, kind, data):
        value = examples(kind, data)
        copied = value.replace_tensors({name: t.clone() for name, t in value.tensors().items()})
        assert copied is not value and encode(copied) == encode(value)
        assert value.to("cpu") is value
        moved = value.to("meta")
        assert {t.device.type for t in moved.tensors().values()} == {"meta"}
        assert (moved.shape, moved.dtype, moved.format) == (value.shape, value.dtype, value.format)

    @given(data=st.data())
    @settings(max_examples=30)
    def test_has_a_short_name(self, kind, data):
        name = examples(kind, data).format
        assert 0 < len(name) < 160 and name == name.strip() and "\n" not in name

    @given(data=st.data())
    @settings(max_examples=4)
    def test_damaged_bytes(self, kind, data):
        blob = bytearray(encode(examples(kind, data)))
        positions = torch.randint(len(blob), (80,), generator=torch.Generator().manual_seed(0))
        for position in positions.tolist():
            with pytest.raises(CorruptFile):
                decode_record(bytes(blob[:position]))
            blob[position] ^= 0x25
            with pytest.raises(CorruptFile):
                decode_record(bytes(blob))
            blob[position] ^= 0x25

    @given(data=st.data())
    @settings(max_examples=250)
    def test_false_headers(self, kind, data):
        """With a valid checksum around it, there is an error of ours or a tensor, nothing else."""
        value = examples(kind, data)
        if 0 in value.shape or "rank 0" in value.format:
            return  # what holds nothing may be of any size
        frame = Compact.from_bytes(encode(value))
        header = json.loads(frame.sections[0].payload)
        path = data.draw(st.sampled_from([path for path in leaves(header) if path]))
        target = header
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = data.draw(hostile)
        sections = (Section(HEADER, json.dumps(header).encode()), *frame.sections[1:])
        try:
            weight = decode(Compact(CODEC, sections).to_bytes())
            weight.dense()
            encode(weight)
        except LaconicError:
            return
        assert weight.numel <= 64 * value.numel + 4096


@pytest.mark.parametrize("kind", sorted(kinds_of(Coded)))
@given(data=st.data())
@settings(max_examples=100)
def test_kernel_and_torch_decode_alike(kind, data):
    value = examples(kind, data)
    expected = value._dense_by_torch().reshape(value.shape)
    assert same_bits(value.dense(torch.float32), expected)


hostile = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 20), st.floats(), st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    st.text(max_size=4), st.sampled_from(sorted(registered_kinds())),
    st.sampled_from([2**31, 2**62, 2**63, 2**70, -(2**70), [], {}, [2**62, 0], [-1, -6], [2.0, 3.0]]),
    st.sampled_from(["U8", "U16", "I8", "F16", "F32", "F8_E4M3", "BOOL", "I64", "e4m3", "e8m0"]),
)  # fmt: skip


def leaves(tree, path=()):
    """Paths of all values in a JSON tree, inner ones included."""
    yield path
    children = tree.items() if isinstance(tree, dict) else ()
    for key, child in enumerate(tree) if isinstance(tree, list) else children:
        yield from leaves(child, (*path, key))


@pytest.mark.parametrize("kind", MASKS)
class TestEveryMask:
    @given(data=st.data())
    @settings(max_examples=100)
    def test_gathers_and_scatters(self, kind, data):
        mask = data.draw(MASKS[kind])
        keep = mask.dense()
        assert keep.dtype == torch.bool and keep.shape == mask.shape
        assert mask.kept == int(keep.sum()) == torch.Size(mask.kept_shape).numel()
        generator = torch.Generator().manual_seed(0)
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            x = (100 * torch.rand(mask.shape, generator=generator)).to(dtype)
            values = mask.gather(x)
            assert values.shape == mask.kept_shape
            assert same_bits(mask.scatter(values), x * keep)
            assert same_bits(Mask.scatter(mask, values), x * keep)

    @given(data=st.data())
    @settings(max_examples=50)
    def test_state_and_tensors(self, kind, data):
        mask = data.draw(MASKS[kind])
        back = from_state(mask.state())
        assert type(back) is type(mask) and back.shape == mask.shape and back.format == mask.format
        assert torch.equal(back.dense(), mask.dense())
        assert back.resident_bytes == mask.resident_bytes
        assert mask.to("meta").device.type == "meta"


@pytest.mark.parametrize("kind", TRANSFORMS)
class TestEveryTransform:
    def transform(self, kind, data) -> InputTransform:
        return data.draw(TRANSFORMS[kind](data.draw(st.sampled_from([1, 2, 6, 8, 12, 16]))))

    @given(data=st.data())
    @settings(max_examples=40)
    def test_a_folded_weight_undoes_it(self, kind, data):
        transform = self.transform(kind, data)
        width = transform.width
        weight, x = torch.randn(5, width), torch.randn(2, 3, width)
        folded = transform.fold(weight)
        assert torch.allclose(transform(x) @ folded.T, x @ weight.T, atol=1e-4, rtol=1e-4)
        assert torch.allclose(transform.unfold(folded), weight, atol=1e-4, rtol=1e-4)
        assert torch.allclose(
            transform.fold(transform.unfold(weight)), weight, atol=1e-4, rtol=1e-4
        )

    @given(data=st.data())
    @settings(max_examples=20)
    def test_convolutions_fold_their_channels(self, kind, data):
        transform = self.transform(kind, data)
        weight, x = torch.randn(4, transform.width, 3, 3), torch.randn(2, transform.width, 5, 6)
        y = transform(x.movedim(1, -1)).movedim(-1, 1)
        folded = transform.fold(weight)
        assert torch.allclose(F.conv2d(y, folded), F.conv2d(x, weight), atol=1e-3, rtol=1e-3)
        assert torch.allclose(transform.unfold(folded), weight, atol=1e-4, rtol=1e-4)

    @given(data=st.data())
    @settings(max_examples=40)
    def test_moment_is_that_of_transformed_samples(self, kind, data):
        transform = self.transform(kind, data)
        x = torch.randn(20, transform.width, dtype=torch.float64)
        expected = transform(x).T @ transform(x)
        moment = transform.moment(x.T @ x)
        assert moment.dtype == torch.float64
        assert torch.allclose(moment, expected, atol=1e-9 * float(expected.abs().max()))

    @given(data=st.data())
    @settings(max_examples=40)
    def test_state_and_record(self, kind, data):
        transform = self.transform(kind, data)
        x = torch.randn(3, transform.width)
        weight = Dense(torch.randn(2, transform.width))
        for back in (
            from_state(transform.state()),
            decode_record(encode(Record(weight, transform))).transform,
        ):
            assert type(back) is type(transform) and back.width == transform.width
            assert same_bits(back(x), transform(x))
            assert back.resident_bytes == transform.resident_bytes
        moved = transform.to("meta")
        assert moved.device.type == "meta" and moved.width == transform.width

    @given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.bfloat16, torch.float16]))
    @settings(max_examples=20)
    def test_keeps_the_dtype(self, kind, data, dtype):
        transform = self.transform(kind, data)
        x = torch.randn(3, transform.width).to(dtype)
        assert transform(x).dtype == transform.fold(x).dtype == transform.unfold(x).dtype == dtype
        assert torch.allclose(transform(x).double(), transform(x.double()), atol=0.1, rtol=0.05)

    @given(data=st.data())
    @settings(max_examples=20)
    def test_other_widths_are_refused(self, kind, data):
        transform = self.transform(kind, data)
        for shape in [(3, transform.width + 1), (transform.width,), ()]:
            with pytest.raises(UsageError, match=kind):
                transform.fold(torch.randn(shape))
