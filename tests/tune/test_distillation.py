from functools import partial

import pytest
import torch
from torch import nn

from laconic.errors import UsageError
from laconic.tune.distill import hidden_mse, kl, reverse_kl
from laconic.tune.distillation import Distillation
from laconic.tune.loop import train
from tests.models.tiny import TINY


def models():
    teacher, student = TINY["gpt2"].model(0), TINY["gpt2"].model(1)
    return teacher, student


def batch():
    ids = TINY["gpt2"].inputs()["input_ids"]
    keep = torch.ones_like(ids)
    keep[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": keep, "labels": ids}


def test_padding_does_not_count():
    teacher, student = models()
    given = {k: v for k, v in batch().items() if k != "labels"}
    with torch.no_grad():
        s, t = student(**given).logits, teacher(**given).logits
    keep = given["attention_mask"].bool()
    loss = Distillation(teacher)(student, batch())
    assert loss.item() == pytest.approx(kl(s[keep], t[keep]).item(), rel=1e-5)
    assert Distillation(teacher, reverse_kl)(student, batch()) != loss


def test_hidden_states_count_as_much_as_logits():
    teacher, student = models()
    loss = Distillation(teacher, layers=[(1, 1), (2, 2)])(student, batch())
    assert loss.item() == pytest.approx(
        2 * Distillation(teacher)(student, batch()).item(), rel=1e-5
    )
    given = {k: v for k, v in batch().items() if k != "labels"} | {"output_hidden_states": True}
    plain = Distillation(teacher)(student, batch())
    a, b = student(**given).hidden_states, teacher(**given).hidden_states
    keep = given["attention_mask"]
    hidden = (
        hidden_mse(a[1], b[1].detach(), mask=keep) + hidden_mse(a[2], b[2].detach(), mask=keep)
    ) / 2
    expected = plain + plain.detach() / hidden.detach() * hidden
    weight = student.transformer.h[0].mlp.c_fc.weight
    found = torch.autograd.grad(loss, weight)[0]
    assert torch.allclose(found, torch.autograd.grad(expected, weight)[0], atol=1e-6)


def test_lowers_the_kl_and_leaves_the_teacher():
    teacher, student = models()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    history = train(
        student, [batch()], Distillation(teacher.train()),
        optimizer=partial(torch.optim.AdamW, lr=3e-3), steps=30,
    )  # fmt: skip
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[n], v) for n, v in teacher.state_dict().items())


def test_plain_modules_and_projections():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner, self.head = nn.Linear(3, width), nn.Linear(width, 4)

        def forward(self, x, output_hidden_states=False):
            hidden = self.inner(x)
            return type("Out", (), {"logits": self.head(hidden), "hidden_states": (hidden,)})

    projection = nn.Linear(2, 5)
    loss = Distillation(Net(5), layers=[(0, 0)], projection=projection)
    loss(Net(2), {"x": torch.randn(6, 3)}).backward()
    assert projection.weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match="no hidden states 3"):
        Distillation(Net(5), layers=[(3, 0)])(Net(5), {"x": torch.randn(6, 3)})
