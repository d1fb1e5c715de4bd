import torch
from safetensors.torch import save_file

from laconic.models.open import open_source
from laconic.models.source import ModelSource
from laconic.zoo.resnet import ResNet20, resnet20


def test_size_and_shape():
    model = ResNet20().eval()
    assert sum(p.numel() for p in model.parameters()) == 272_474
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_classes():
    assert ResNet20(classes=100).fc.out_features == 100


def test_weights_of_a_directory(tmp_path):
    model = ResNet20()
    torch.nn.init.normal_(model.fc.weight)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = resnet20(str(tmp_path)).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model.eval()(x))


def test_blocks_and_the_layers_outside():
    source: ModelSource = open_source("laconic.zoo.resnet:resnet20")
    assert [len(block.layers) for block in source.blocks] == [2, 2, 2, 3, 2, 2, 3, 2, 2]
    assert [layer.name for layer in source.extra_layers] == ["conv1", "fc"]
