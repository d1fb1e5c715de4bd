import pytest
import torch
from hypothesis import given, settings

from laconic.errors import CorruptFile, UsageError
from laconic.tensors import FloatQuantizer, GroupedFloat
from laconic.tensors.compressed import State, from_state
from laconic.tensors.floats import FORMATS
from laconic.tensors.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, MINIFLOATS
from tests.tensors.strategies import same_bits, weights

BLOCKS = {"mxfp8": 32, "mxfp6": 32, "mxfp4": 32, "nvfp4": 16}
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


class TestElements:
    def test_values_of_the_specification(self):
        assert E2M1.table().tolist()[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
        assert [m.largest for m in (E2M1, E2M3, E3M2, E4M3, E5M2)] == [6, 7.5, 28, 448, 57344]
        assert [m.bits for m in (E2M1, E2M3, E3M2, E4M3, E5M2)] == [4, 6, 6, 8, 8]
        assert [m.largest_exponent for m in (E2M1, E2M3, E3M2, E4M3, E5M2)] == [2, 2, 4, 8, 15]
        assert E2M3.value(1) == 0.125 and E3M2.value(1) == 0.0625

    @pytest.mark.parametrize("name", TORCH)
    def test_codes_are_torchs(self, name):
        """For all that torch does not turn into NaN or infinity."""
        element = MINIFLOATS[name]
        every = torch.arange(256, dtype=torch.uint8).view(TORCH[name]).float()
        finite = every.isfinite()
        assert same_bits(element.table()[finite].abs(), every[finite].abs())
        x = torch.cat([every[finite], torch.randn(4096) * torch.logspace(-9, 2, 4096)])
        x = x[x.abs() <= element.largest]
        assert torch.equal(element.table()[element.encode(x).int()], x.to(TORCH[name]).float())

    @pytest.mark.parametrize("name", MINIFLOATS)
    def test_rounds_to_the_nearest_and_ties_to_even(self, name):
        element = MINIFLOATS[name]
        values = torch.tensor([element.value(m) for m in range(element.top + 1)])
        middle = (values[1:] + values[:-1]) / 2
        low = torch.arange(element.top)
        assert torch.equal(element.encode(middle).long(), low + low % 2)
        assert torch.equal(element.encode(middle * (1 - 1e-6)).long(), low)
        assert torch.equal(element.encode(middle * (1 + 1e-6)).long(), low + 1)
        assert torch.equal(element.encode(values).long(), torch.arange(element.top + 1))

    @pytest.mark.parametrize("name", MINIFLOATS)
    def test_saturates_and_knows_no_negative_zero(self, name):
        element = MINIFLOATS[name]
        codes = element.encode(torch.tensor([1e30, -1e30, torch.inf, -0.0, -1e-30, torch.nan]))
        values = element.table()[codes.int()]
        assert values.tolist() == [element.largest, -element.largest, element.largest, 0, 0, 0]
        assert codes[3:].tolist() == [0, 0, 0]


class TestScales:
    @pytest.mark.parametrize("name", ["mxfp8", "mxfp6", "mxfp4"])
    def test_of_mx_are_powers_of_two_by_the_greatest_exponent(self, name):
        x = torch.randn(4, 70)
        params = FloatQuantizer(name).fit(x)
        element = MINIFLOATS[FORMATS[name].element]
        for g in range(3):
            greatest = x[:, 32 * g : 32 * g + 32].abs().amax(1)
            expected = 2.0 ** (greatest.log2().floor() - element.largest_exponent)
            assert torch.equal(params.scale[:, g].float(), expected)

    def test_of_nvfp4(self):
        x = torch.randn(4, 32)
        params = FloatQuantizer("nvfp4").fit(x)
        assert params.scale.dtype == torch.float8_e4m3fn and params.scale.shape == (4, 2)
        assert params.tensor_scale.item() == pytest.approx(x.abs().max().item() / (6 * 448))
        greatest = x.reshape(4, 2, 16).abs().amax(-1)
        joint = params.scale.float() * params.tensor_scale
        assert torch.allclose(joint, greatest / 6, rtol=1 / 15)
        assert params.scale.float().max() == 448

    def test_of_plain_formats_span_the_group(self):
        x = torch.randn(4, 40)
        params = FloatQuantizer("e4m3").fit(x)
        assert torch.equal(params.scale[:, 0], (x.abs().amax(1) / 448).bfloat16())
        assert FloatQuantizer("e2m1", 16).fit(x).scale.shape == (4, 3)
        assert FloatQuantizer("e5m2", "tensor").fit(x).scale.shape == (1, 1)

    @pytest.mark.parametrize("name", FORMATS)
    @given(x=weights())
    @settings(max_examples=25)
    def test_searched_ones_lose_no_more(self, name, x):
        lost = [
            (FloatQuantizer(name, range=kind).project(x).float() - x.float()).square().sum()
            for kind in ("minmax", "mse")
        ]
        assert lost[1] <= lost[0] * (1 + 1e-4) + 1e-9

    @pytest.mark.parametrize("name", FORMATS)
    def test_any_magnitude(self, name):
        x = torch.randn(3, 64)
        expected = FloatQuantizer(name).project(x)
        for power in (-80, -20, 20, 80):
            scaled = FloatQuantizer(name).project(x * 2.0**power)
            assert torch.allclose(scaled / 2.0**power, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_bits_in_memory(name):
    value = FloatQuantizer(name).quantize(torch.randn(8, 128))
    block = BLOCKS.get(name)
    bytes_ = 8 * 128 * value.bits // 8 + (8 * 2 if block is None else 8 * 128 // block)
    assert value.resident_bytes == bytes_ + 4 * (name == "nvfp4")
    assert value.format == (name if block else f"{name} row")


def test_names():
    x = torch.randn(8, 64)
    assert FloatQuantizer("e4m3", 16).quantize(x).format == "e4m3 g16"
    assert FloatQuantizer("e4m3", "tensor").quantize(x).format == "e4m3 tensor"
    value = FloatQuantizer("mxfp4").quantize(torch.randn(8, 20))  # a row is one short block
    assert value.format == "mxfp4 g20"
    scale = torch.ones(8, 1, dtype=torch.float8_e8m0fnu)
    codes = torch.zeros(8, 64)
    odd = GroupedFloat.from_codes(codes, scale, None, element="e5m2", group=64, dtype=torch.float32)
    assert odd.format == "mxfp8 e5m2 g64"
    small = FloatQuantizer("nvfp4").quantize(torch.randn(8, 4))
    assert small.format == "nvfp4 g4"


@pytest.mark.parametrize(
    "given_, match", [
        ({"format": "fp3"}, "format"), ({"format": "mxfp4", "group": 16}, "leave it out"),
        ({"format": "e4m3", "group": 0}, "group"), ({"format": "e4m3", "group": "column"}, "group"),
        ({"range": "best"}, "range"),
    ],
)  # fmt: skip
def test_settings(given_, match):
    with pytest.raises(UsageError, match=match):
        FloatQuantizer(**given_)


def test_parts_that_do_not_fit():
    shape, packed = torch.Size((4, 8)), torch.zeros(16, dtype=torch.uint8)
    scale = torch.ones(4, 1, dtype=torch.bfloat16)
    GroupedFloat(shape, torch.float32, "e2m1", 8, packed, scale)
    for element, parts, match in [
        ("e1m2", (packed, scale), "unknown element"),
        ("e2m1", (packed[1:], scale), "codes of 4 bits"),
        ("e2m1", (packed, scale.float()), "E8M0 or E4M3"),
        ("e2m1", (packed, scale[1:]), "scale must be"),
        ("e2m1", (packed, scale, torch.ones(2)), "tensor_scale must be"),
    ]:
        with pytest.raises(UsageError, match=match):
            GroupedFloat(shape, torch.float32, element, 8, *parts)


def test_codes_that_are_no_number():
    state = FloatQuantizer("e4m3").quantize(torch.randn(2, 4)).state()
    codes = torch.full((8,), 0xFF, dtype=torch.uint8)
    with pytest.raises(CorruptFile, match="is no number"):
        from_state(State(state.kind, state.meta, state.arrays | {"codes": codes}))
