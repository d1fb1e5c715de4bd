import json

import pytest
import torch
from torch import nn

from laconic.errors import LaconicError, UnsupportedModel, UsageError
from laconic.models.memory import (
    MODULE_CONFIG,
    MemorySource,
    call_factory,
    from_factory,
    is_factory,
)
from laconic.tensors import Dense
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from tests.models.tiny import TINY

HERE = "tests.models.test_memory"


def make():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def make_from(path):
    return nn.Sequential(nn.Linear(4, int(path)))


def breaks():
    raise KeyError("of its own")


def refuses():
    raise LaconicError("says why")


def no_module():
    return 3


NOTHING = 3


class TestSource:
    def test_reads_the_state_itself(self):
        model = make()
        source = MemorySource(model)
        assert source.sizes() == {k: v.nbytes for k, v in model.state_dict().items()}
        weight = source.read(["0.weight"])["0.weight"]
        assert weight.data_ptr() == model[0].weight.data_ptr() and not weight.requires_grad

    def test_one_part_and_no_fingerprint(self):
        source = MemorySource(make())
        assert source.tensors_below("0") == ["0.weight", "0.bias"]
        assert source.fingerprint() is None  # there are no files to compare

    @pytest.mark.parametrize("name", TINY)
    def test_sees_what_the_directory_shows(self, name, tiny_models):
        from laconic.models.huggingface import HuggingFaceSource

        on_disk, here = HuggingFaceSource(tiny_models[name]), MemorySource(TINY[name].model())
        assert here.sizes() == on_disk.sizes()
        assert here.blocks == on_disk.blocks and here.extra_layers == on_disk.extra_layers

    def test_config_of_a_transformers_model(self, tmp_path):
        model = TINY["llama"].model()
        before = model.config.to_dict()
        MemorySource(model).save_config(tmp_path, {"quant_method": "laconic"})
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["quantization_config"] == {"quant_method": "laconic"}
        assert config["dtype"] == "bfloat16"
        assert model.config.to_dict() == before

    def test_config_of_a_factory(self, tmp_path):
        from_factory(f"{HERE}:make").save_config(tmp_path, {"modules": []})
        config = json.loads((tmp_path / MODULE_CONFIG).read_text())
        assert config == {"factory": f"{HERE}:make", "quantization_config": {"modules": []}}

    def test_plain_module_cannot_be_saved(self, tmp_path):
        with pytest.raises(UsageError, match="factory"):
            MemorySource(make()).save_config(tmp_path, {})

    def test_compressed_already(self):
        model = make()
        replace_module(model, "0", {"weight": Record(Dense(model[0].weight.data))})
        with pytest.raises(UnsupportedModel, match="compressed already"):
            MemorySource(model)


class TestFactory:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("a:b", True), ("a.b.c:d", True), ("a:b@x/y", True), ("a:b@", True), ("a", False),
            ("a/b:c", False), ("./a:b", False), ("a b:c", False), ("a:", False), (":b", False),
            ("C:\\x", False), ("", False),
        ],
    )  # fmt: skip
    def test_spelling(self, name, expected):
        assert is_factory(name) is expected

    def test_builds_in_evaluation_mode(self):
        assert not call_factory(f"{HERE}:make").training
        assert from_factory(f"{HERE}:make_from@3").skeleton[0].out_features == 3

    @pytest.mark.parametrize(
        ("factory", "says"),
        [
            ("no.such.module:make", "cannot import"), (f"{HERE}:absent", "cannot import"),
            (f"{HERE}:no_module", "returned a int"), (f"{HERE}:breaks", "of its own"),
            (f"{HERE}:make_from", "failed"), (f"{HERE}:NOTHING", "failed"),
        ],
    )  # fmt: skip
    def test_what_goes_wrong(self, factory, says):
        with pytest.raises(UnsupportedModel, match=says):
            call_factory(factory)

    def test_its_own_errors_are_passed_on(self):
        with pytest.raises(LaconicError, match="says why"):
            call_factory(f"{HERE}:refuses")

    def test_a_path_that_it_does_not_take(self):
        with pytest.raises(UsageError, match="takes no path"):
            from_factory(f"{HERE}:make@somewhere")
