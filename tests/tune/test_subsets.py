import pytest
import torch
from torch import nn

from laconic.errors import UsageError
from laconic.tune.adapters import add_lora, lora_parameters
from laconic.tune.subsets import is_norm, train_only
from tests.models.tiny import TINY


def names(model, *subsets):
    train_only(model, *subsets)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_kinds_of_parameters():
    model = TINY["opt"].model()
    everything = {name for name, _ in model.named_parameters()}
    norms = {n for n in everything if "layer_norm" in n}
    assert names(model, "norm") == norms
    assert names(model, "bias") == {n for n in everything if n.endswith("bias")} - norms
    assert names(model, "bias", "norm") == norms | {n for n in everything if n.endswith("bias")}
    assert (
        names(model, "head") == names(model, "embedding") == {"model.decoder.embed_tokens.weight"}
    )
    assert names(model, "all") == everything
    assert names(TINY["llama"].model(), "head") == {"lm_head.weight"}


def test_rms_norms_and_adapters():
    model = TINY["llama"].model()
    assert len(names(model, "norm")) == 5
    add_lora(model)
    chosen = train_only(model, "lora", "norm")
    assert len(chosen) == 5 + len(lora_parameters(model))
    assert all(p.requires_grad for p in chosen)


def test_order_is_the_models():
    model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert [id(p) for p in train_only(model, "bias", "norm")] == [
        id(p) for p in model.parameters() if p is not model[1].weight
    ]
    assert is_norm(model[0]) and is_norm(model[2]) and not is_norm(model[1])


def test_bad_requests():
    with pytest.raises(UsageError, match="has no bias"):
        train_only(nn.Linear(2, 2, bias=False), "bias")
    with pytest.raises(UsageError, match="has no head"):
        train_only(nn.Linear(2, 2), "head")
    with pytest.raises(UsageError, match="did you mean 'norm'"):
        train_only(nn.LayerNorm(2), "nrm")


def test_whole_numbers_are_not_trained():
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    assert len(train_only(model, "all")) == 2
