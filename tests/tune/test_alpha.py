import pytest
import torch
from torch import nn

import laconic
from laconic.errors import CorruptFile, UsageError
from laconic.quantize.alphatuning import BCQ
from laconic.tensors.binary_quantizer import BinaryQuantizer
from laconic.tensors.decoded import kept_decoded
from laconic.tune.alpha import (
    FILE,
    TunedScales,
    add_scales,
    load_scales,
    save_scales,
    settle_scales,
)


def base(seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8))
    return laconic.compress(model, BCQ(**settings)).model


def fit(model, parameters, steps=60):
    generator = torch.Generator().manual_seed(5)
    x, goal = torch.randn(64, 32, generator=generator), torch.randn(64, 8, generator=generator)
    optimizer, losses = torch.optim.Adam(parameters, lr=0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("planes", ["first", "all"])
@pytest.mark.parametrize("settings", [{"bits": 2}, {"bits": 3, "group": 8, "offset": True}])
def test_scales_learn_and_signs_stay(planes, settings):
    model = base(**settings)
    signs = [m.weight.planes.clone() for m in (model[0], model[2])]
    losses = fit(model, add_scales(model, planes))
    assert losses[-1] < 0.97 * losses[0]
    settle_scales(model)
    assert all(torch.equal(m.weight.planes, s) for m, s in zip((model[0], model[2]), signs))


def test_few_numbers_are_trained():
    model = base()
    free = add_scales(model)
    assert sum(p.numel() for p in free) == 24 + 8
    assert [p for p in model.parameters() if p.requires_grad] == []  # biases are frozen


@pytest.mark.parametrize("group", ["row", 8])
def test_computes_what_it_will_settle_to(group):
    value = TunedScales.of(BinaryQuantizer(3, group).quantize(torch.randn(12, 32)), "all")
    value.delta.data.normal_(std=0.2)
    x = torch.randn(5, 32)
    settled = value.settled()
    assert torch.allclose(value.matmul(x), x @ settled.dense(torch.float32).T, atol=1e-5)
    assert torch.allclose(value.dense(), settled.dense(), atol=1e-5)


@pytest.mark.parametrize("group", ["row", 8])
def test_gradients_are_those_of_the_dense_weight(group):
    value = TunedScales.of(BinaryQuantizer(2, group).quantize(torch.randn(6, 16)))
    x = torch.randn(4, 16)
    value.matmul(x).square().sum().backward()
    ours = value.delta.grad.clone()
    value.delta.grad = None
    (x @ value.dense().T).square().sum().backward()
    assert torch.allclose(ours, value.delta.grad, rtol=1e-4, atol=1e-5)


def test_tasks_swap_on_one_base(tmp_path):
    model = base()
    x = torch.randn(3, 32)
    outputs = {}
    for task, steps in (("a", 5), ("b", 20)):
        tuned = base()
        fit(tuned, add_scales(tuned), steps)
        save_scales(tuned, tmp_path / task)
        outputs[task] = settle_scales(tuned)(x).detach()
    for task in ("a", "b", "a"):
        load_scales(model, tmp_path / task)
        assert torch.allclose(model(x), outputs[task], atol=1e-6)
    size = (tmp_path / "a" / FILE).stat().st_size
    assert size < 1000


def test_other_bases_are_refused(tmp_path):
    tuned = base()
    add_scales(tuned)
    save_scales(tuned, tmp_path)
    with pytest.raises(UsageError, match="another base: the signs"):
        load_scales(base(seed=1), tmp_path)
    with pytest.raises(UsageError, match="not binary coded here"):
        load_scales(nn.Sequential(nn.Linear(32, 24)), tmp_path)


def test_damaged_files(tmp_path):
    with pytest.raises(CorruptFile, match="no scales"):
        load_scales(base(), tmp_path)
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(CorruptFile):
        load_scales(base(), tmp_path)


def test_nothing_to_tune():
    with pytest.raises(UsageError, match="bcq first"):
        add_scales(nn.Linear(4, 4))
    with pytest.raises(UsageError, match="set free"):
        save_scales(base(), "nowhere")
    with pytest.raises(UsageError, match="planes"):
        add_scales(base(), "second")


def test_decoded_for_measuring_they_multiply_as_before():
    model = laconic.compress(nn.Sequential(nn.Linear(16, 8)), BCQ(2)).model
    add_scales(model)[0].data.fill_(0.25)
    x = torch.randn(5, 16)
    with torch.no_grad():
        expected = model(x)
        with kept_decoded(model, 1 << 20):
            assert torch.allclose(model(x), expected, atol=1e-6)
        assert torch.equal(model(x), expected)
