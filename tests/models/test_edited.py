import json

import pytest
import torch

from laconic.errors import UsageError
from laconic.models.edited import EditedSource
from laconic.models.edits import droppable, drops
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.memory import MemorySource
from laconic.models.source import structure_of
from tests.models.tiny import TINY


def edits(source, kind="mlp", block=1):
    units = droppable(source.skeleton)
    return drops([unit.path for unit in units if (unit.kind, unit.block) == (kind, block)])


@pytest.fixture(params=["disk", "memory"])
def source(request, tiny_models):
    if request.param == "disk":
        return HuggingFaceSource(tiny_models["llama"])
    return MemorySource(TINY["llama"].model(), "here")


def test_what_was_dropped_is_gone(source):
    whole = dict(source.sizes())
    edited = EditedSource(source, edits(source))
    gone = set(whole) - set(edited.sizes())
    assert gone and all(".layers.1.mlp." in name for name in gone)
    assert all(edited.sizes()[name] == whole[name] for name in edited.sizes())
    assert [len(block.layers) for block in edited.blocks] == [7, 4]


def test_the_source_is_not_changed(source):
    modules, whole = dict(source.skeleton.named_modules()), dict(source.sizes())
    EditedSource(source, edits(source))
    assert dict(source.skeleton.named_modules()) == modules and source.sizes() == whole


def test_the_rest_is_the_sources(source, tmp_path):
    edited = EditedSource(source, edits(source))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(edited.read([name])[name], source.read([name])[name])
    assert (edited.name, edited.folder) == (source.name, source.folder)
    assert edited.fingerprint() == source.fingerprint()
    assert edited.dense_bytes == source.dense_bytes  # what was dropped counts as saved
    edited.save_config(tmp_path, {"quant_method": "laconic"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "laconic"}
    assert config["num_hidden_layers"] == 2


def test_edits_that_do_not_fit(source):
    with pytest.raises(UsageError):
        EditedSource(source, drops(["model.layers.9.mlp"]))


def test_a_structure_shares_tensors_but_not_modules():
    model = TINY["llama"].model().train()
    copy = structure_of(model)
    assert not copy.training and model.training
    for name, parameter in model.named_parameters():
        assert copy.get_parameter(name) is parameter
    assert not {id(m) for m in copy.modules()} & {id(m) for m in model.modules()}
