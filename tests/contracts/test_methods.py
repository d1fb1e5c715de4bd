"""What every registered method must do. A new one adds a line to `cases.METHODS`."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from laconic.compression import compress
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Method
from laconic.probing import output_error
from laconic.registry import ENTRIES, Kind
from laconic.tensors import CompressedTensor
from laconic.tensors.stored import decode, encode
from tests.contracts.cases import METHODS
from tests.contracts.data import stats_for
from tests.tensors.strategies import same_bits

NAMES = [name for name, entry in ENTRIES.items() if entry.kind is Kind.METHOD]
ALL = [(name, settings) for name, variants in METHODS.items() for settings in variants]
IMAGES = [{"x": torch.randn(1, 3, 8, 8)} for _ in range(4)]
ROWS = [{"x": torch.randn(30, 64)} for _ in range(4)]
SHAPES = [(16, 48), (1, 1), (1, 40), (40, 1), (7, 13), (8, 4, 3, 3), (6, 5, 3)]


def test_every_method_has_its_line():
    assert set(METHODS) == set(NAMES)


def spelt(case):
    return f"{case[0]}-{'-'.join(map(str, case[1].values())) or 'default'}"


@pytest.fixture(params=ALL, ids=spelt)
def method(request) -> Method:
    name, settings = request.param
    return ENTRIES[name].load()(**settings)


@pytest.fixture
def layer_method(method) -> LayerMethod:
    return method if isinstance(method, LayerMethod) else pytest.skip("sees more than a layer")


def compressed(method, weight):
    return method.compress_weight(weight, stats_for(method, weight))


class TestEveryMethod:
    def test_is_frozen(self, method):
        field = dataclasses.fields(method)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field, None)
        assert hash(method) == hash(dataclasses.replace(method))

    def test_settings_are_json_and_come_back(self, method):
        settings = json.loads(json.dumps(method.settings()))
        assert type(method).from_settings(settings) == method

    def test_settings_come_back_from_text(self, method):
        """As the command line gives them."""
        text = {name: str(value) for name, value in method.settings().items()}
        assert type(method).from_settings(text) == method

    def test_unknown_settings(self, method):
        with pytest.raises(UsageError, match="has no setting"):
            type(method).from_settings({"no_such_setting": "1"})

    def test_documents_every_setting(self, method):
        for field in dataclasses.fields(method):
            assert f"{field.name}:" in type(method).__doc__


class TestEveryLayerMethod:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_keeps_shape_and_dtype(self, layer_method, shape, dtype):
        weight = torch.randn(shape).to(dtype)
        value = compressed(layer_method, weight)
        assert isinstance(value, CompressedTensor)
        assert (value.shape, value.dtype) == (weight.shape, dtype)
        dense = value.dense()
        assert (dense.shape, dense.dtype) == (weight.shape, dtype) and dense.isfinite().all()

    def test_the_weight_is_not_changed(self, layer_method):
        weight = torch.randn(16, 48)
        before = weight.clone()
        compressed(layer_method, weight)
        assert torch.equal(weight, before)

    def test_equal_weights_give_equal_bytes(self, layer_method):
        weight = torch.randn(16, 48)
        once, again = (encode(compressed(layer_method, weight.clone())) for _ in range(2))
        assert once == again

    def test_bytes_come_back(self, layer_method):
        value = compressed(layer_method, torch.randn(16, 48).bfloat16())
        back = decode(encode(value))
        assert same_bits(back.dense(), value.dense()) and back.format == value.format
        assert encode(back) == encode(value)
        assert value.stored_bytes == len(encode(value))

    def test_is_smaller_and_near(self, layer_method):
        weight = torch.randn(128, 256)
        stats = stats_for(layer_method, weight)
        value = layer_method.compress_weight(weight, stats)
        assert value.stored_bytes < weight.nbytes / 2 and value.resident_bytes < weight.nbytes
        assert output_error(weight, value, stats) < 1

    def test_zeros_stay_zeros(self, layer_method):
        assert (compressed(layer_method, torch.zeros(4, 24)).dense() == 0).all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_damaged_weights(self, layer_method, bad):
        weight = torch.randn(8, 24)
        weight[3, 7] = bad
        with pytest.raises(BadWeights):
            compressed(layer_method, weight)

    def test_options_are_the_same_method_at_other_strengths(self, layer_method):
        options = layer_method.options()
        assert options and all(type(option) is type(layer_method) for option in options)
        assert len(set(options)) == len(options)
        sizes = [compressed(o, torch.randn(32, 256)).stored_bytes for o in options]
        assert min(sizes) > 0

    def test_a_whole_model(self, layer_method):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
        x = torch.randn(2, 3, 8, 8)
        report = compress(model, layer_method, IMAGES).report
        assert len(report.layers) == 2 and report.stored_bytes < report.dense_bytes
        assert model(x).shape == (2, 5) and model(x).isfinite().all()

    def test_a_budget_is_respected(self, layer_method):
        if len(layer_method.options()) < 2:
            pytest.skip("has one strength")
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        report = compress(model, layer_method, ROWS, budget="60%").report
        assert report.kept <= 0.6
