import pytest
import torch
from torch import nn

from laconic.errors import UnsupportedModel
from laconic.models.layout import Layer, Part, find_blocks, layers_of


class Trunk(nn.Module):
    """Two lists of blocks, one list inside of a block, and lists that hold nothing to compress."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        self.encoder = nn.ModuleList(
            nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
            for _ in range(2)
        )
        self.decoder = nn.ModuleList([nn.Linear(4, 4)])
        self.table = nn.Embedding(5, 4)


def test_outermost_lists_that_hold_layers():
    assert find_blocks(Trunk()) == ["encoder.0", "encoder.1", "decoder.0"]


def test_children_where_there_are_no_lists():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    assert find_blocks(model) == ["0", "2"]
    assert [layer.name for layer in layers_of(model, "2")] == ["2.0"]
    assert [layer.name for layer in layers_of(model, "0")] == ["0"]


@pytest.mark.parametrize(
    "model", [nn.ReLU(), nn.Sequential(nn.LayerNorm(3)), nn.Sequential(nn.Embedding(3, 2))]
)
def test_nothing_to_compress(model):
    with pytest.raises(UnsupportedModel, match="no linear"):
        find_blocks(model)


def test_another_head_on_a_known_trunk():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9
    )
    assert find_blocks(BertModel(config)) == ["encoder.layer.0", "encoder.layer.1"]


def test_kinds_and_embeddings_only_when_asked_for():
    model = Trunk()
    assert [la.kind for la in layers_of(model, "stem")] == ["conv"]
    assert layers_of(model, "table") == ()
    (table,) = layers_of(model, "table", embeddings=True)
    assert (table.kind, table.shape, table.parameter) == ("embedding", (5, 4), "table.weight")


def test_take_cuts_turns_and_makes_contiguous():
    value = torch.arange(24.0).reshape(2, 4, 3)
    part = Layer("x", "m", "w", torch.Size((2, 3)), "expert", part=Part(1, 1, 1, 2, 4))
    assert torch.equal(part.take({"m.w": value}), value[1, 2:4])
    turned = Layer("x", "m", "w", torch.Size((3, 4)), "linear", transposed=True)
    assert torch.equal(turned.take({"m.w": value[0]}), value[0].T)
    assert turned.take({"m.w": value[0]}).is_contiguous()
