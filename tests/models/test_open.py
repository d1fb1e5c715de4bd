import pytest
from torch import nn

from laconic.errors import UnsupportedModel
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.memory import MODULE_CONFIG, MemorySource
from laconic.models.open import open_source


def test_each_kind(tiny_models):
    assert isinstance(open_source(tiny_models["bert"]), HuggingFaceSource)
    assert isinstance(open_source(str(tiny_models["bert"])), HuggingFaceSource)
    module = MemorySource(nn.Sequential(nn.Linear(2, 2)))
    assert open_source(module) is module
    assert open_source(module.skeleton).skeleton is module.skeleton
    assert open_source("laconic.zoo.resnet:resnet20").name == "laconic.zoo.resnet:resnet20"


def test_a_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(UnsupportedModel, match="is a file"):
        open_source(path)


def test_nothing_there(tmp_path):
    with pytest.raises(UnsupportedModel, match="not there"):
        open_source(tmp_path / "absent")


def test_an_empty_directory(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        open_source(tmp_path)


def test_a_compressed_module(tmp_path):
    (tmp_path / MODULE_CONFIG).write_text("{}")
    with pytest.raises(UnsupportedModel, match="compressed already"):
        open_source(tmp_path)
