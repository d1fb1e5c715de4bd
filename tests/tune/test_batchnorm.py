import pytest
import torch
from safetensors.torch import save_file

from laconic.compression import compress
from laconic.errors import DataError, LaconicError
from laconic.loading import load
from laconic.prune.magnitude import Magnitude
from laconic.tune.batchnorm import BatchNormStats
from laconic.zoo.resnet import resnet20

FITTED = 10  # of 12 images; the others are held out


@pytest.fixture(scope="module")
def images():
    return [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(12)]


def network():
    torch.manual_seed(0)
    model = resnet20()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
    return model.eval()


def seen(model, name, images):
    """What the norm `name` is given."""
    kept = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _m, x: kept.append(x[0]))
    with torch.no_grad():
        for image in images:
            model(image[None])
    hook.remove()
    return torch.cat(kept).transpose(0, 1).flatten(1).double()


def test_statistics_are_those_of_the_compressed_model(images):
    model = network()
    before = model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    report = compress(model, [Magnitude(0.6), BatchNormStats()], images).report
    norms = [n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    means = {n: model.get_submodule(n).running_mean for n in norms}
    changed = [n for n in norms if not torch.equal(before[f"{n}.running_mean"], means[n])]
    assert [n for n in norms if n not in changed] == ["bn1"]  # of the stem, which is no block
    for name in changed:
        x, norm = seen(model, name, images[:FITTED]), model.get_submodule(name)
        assert torch.allclose(norm.running_mean.double(), x.mean(dim=1), atol=1e-4)
        assert torch.allclose(norm.running_var.double(), x.var(dim=1), rtol=1e-3)
    assert "3 norms taken again" in str(report.layers)


def test_in_files_as_in_memory(images, tmp_path):
    model, chain = network(), [Magnitude(0.6), BatchNormStats()]
    folder = tmp_path / "dense"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    compress(f"laconic.zoo.resnet:resnet20@{folder}", chain, images, out=tmp_path / "out")
    compress(model, chain, images)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(images[0][None]), model(images[0][None]))


def test_without_data_or_norms(images, tiny_models):
    with pytest.raises(DataError, match="needs"):
        compress(network(), [Magnitude(0.5), BatchNormStats()])
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    before = model[0].weight.clone()
    compress(model, [Magnitude(0.5), BatchNormStats()], [torch.randn(4) for _ in range(4)])
    assert not torch.equal(model[0].operand().dense(), before)


def test_a_failure_leaves_the_model_as_it_was(images):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = [*images[:2], torch.full((3, 32, 32), float("inf"))] * 3
    with pytest.raises(LaconicError):
        compress(model, [Magnitude(0.6), BatchNormStats()], bad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
