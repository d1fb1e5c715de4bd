"""What every registered quantizer must do. A new one adds a line to `cases.QUANTIZERS`."""

import dataclasses
import json

import pytest
import torch

from laconic.errors import BadWeights, CorruptFile
from laconic.registry import ENTRIES, Kind
from laconic.tensors.quantizer import Quantizer, from_settings, register_quantizer
from laconic.tensors.stored import Record, decode_record, encode
from tests.contracts.cases import QUANTIZERS
from tests.tensors.strategies import same_bits

NAMES = [name for name, entry in ENTRIES.items() if entry.kind is Kind.QUANTIZER]
ALL = [(name, settings) for name, variants in QUANTIZERS.items() for settings in variants]
SHAPES = [(16, 48), (1, 1), (7, 13), (5,), (), (0, 4), (4, 0), (8, 4, 3, 3)]


def test_every_quantizer_has_its_line():
    assert set(QUANTIZERS) == set(NAMES)


def spelt(case):
    return f"{case[0]}-{'-'.join(map(str, case[1].values())) or 'default'}"


@pytest.fixture(params=ALL, ids=spelt)
def quantizer(request) -> Quantizer:
    name, settings = request.param
    made = ENTRIES[name].load()(**settings)
    assert made.kind == name
    return made


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestValues:
    def test_verbs_agree(self, quantizer, shape):
        """project == decode . encode == quantize().dense(), in the dtype of the input."""
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn(shape).to(dtype)
            params = quantizer.fit(x)
            codes = quantizer.encode(x, params)
            rows = x.shape[0] if x.ndim else 1
            assert not codes.is_floating_point()
            assert codes.shape == x.shape or (codes.ndim == 2 and codes.shape[0] == rows)
            decoded = quantizer.decode(codes, params)
            assert decoded.dtype == torch.float32 and decoded.shape == x.shape
            assert same_bits(quantizer.project(x), decoded.to(dtype))
            assert same_bits(quantizer.quantize(x).dense(), decoded.to(dtype))
            assert same_bits(quantizer.pack(codes, params, x).dense(), decoded.to(dtype))

    def test_points_of_the_grid_stay(self, quantizer, shape):
        x = torch.randn(shape)
        params = quantizer.fit(x)
        once = quantizer.decode(quantizer.encode(x, params), params)
        assert torch.equal(quantizer.decode(quantizer.encode(once, params), params), once)

    def test_the_same_again(self, quantizer, shape):
        x = torch.randn(shape)
        before = x.clone()
        assert encode(quantizer.quantize(x)) == encode(quantizer.quantize(x.clone()))
        assert same_bits(x, before)


class TestEveryQuantizer:
    def test_stored_bits_are_those_of_the_blob(self, quantizer):
        x = torch.randn(64, 256)
        bits = quantizer.stored_bits(x)
        assert bits == pytest.approx(8 * len(encode(quantizer.quantize(x))) / x.numel())
        assert 0 < bits < 16

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_damaged_values(self, quantizer, bad):
        with pytest.raises(BadWeights):
            quantizer.quantize(torch.tensor([[1.0, bad]]))

    def test_settings_come_back(self, quantizer):
        settings = json.loads(json.dumps(quantizer.settings()))
        assert from_settings(settings) == quantizer
        assert settings["kind"] == quantizer.kind

    def test_stands_before_a_weight(self, quantizer):
        weight = quantizer.quantize(torch.randn(4, 8))
        record = decode_record(encode(Record(weight, activation=quantizer)))
        assert record.activation == quantizer

    def test_is_frozen(self, quantizer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(quantizer, dataclasses.fields(quantizer)[0].name, None)


def test_unknown_kinds_name_the_nearest():
    with pytest.raises(CorruptFile, match="'int'"):
        from_settings({"kind": "imt"})
    with pytest.raises(CorruptFile):
        from_settings({})


def test_a_kind_is_claimed_once():
    class Impostor(ENTRIES["int"].load()):
        kind = "int"

    with pytest.raises(ValueError, match="two quantizers"):
        register_quantizer(Impostor)
