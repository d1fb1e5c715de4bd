from functools import partial

import pytest
import torch
from torch import nn

from laconic.errors import UsageError
from laconic.tune.gates import BoundGates, HardConcrete
from laconic.tune.lagrange import Lagrangian
from laconic.tune.loop import train
from laconic.tune.schedules import cubic


class Gated(nn.Module):
    """Gates of different use: the loss is the use of what is shut."""

    def __init__(self, count=40):
        super().__init__()
        self.gates = HardConcrete(count, keep=0.95)
        self.register_buffer("use", torch.linspace(0, 1, count))

    def share(self):
        return self.gates.open().mean()

    def loss(self):
        return (self.use * (1 - self.gates())).mean()


HALF_WAY = partial(cubic, end=0.5)


def go(target, steps=400, schedule=HALF_WAY, **settings):
    model = Gated()
    held = Lagrangian(model.share, target, stiffness=30, schedule=schedule)
    train(
        model, [0], lambda m, _: m.loss(),
        optimizer=partial(torch.optim.Adam, lr=0.1), steps=steps, callbacks=[held, BoundGates()], **settings,
    )  # fmt: skip
    return model, held


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_ends_at_the_target_with_the_most_useful_open(target):
    model, held = go(target)
    assert model.share().item() == pytest.approx(target, abs=0.04)
    alive = model.gates.open()
    assert alive[-20:].mean() > alive[:20].mean() + 0.2
    assert len(held.gaps) == 400 and abs(held.gaps[-1]) < 0.04


def test_the_term_and_the_ascent_are_the_formulas():
    model = Gated()
    held = Lagrangian(model.share, 0.5, rate=0.5)
    held.multipliers = (2.0, 3.0)
    state = type("State", (), {"step": 0, "steps": 10})
    held.on_start(state)
    gap = model.share() - 0.5
    (expected,) = torch.autograd.grad(2 * gap + 3 * gap**2, model.gates.log_alpha)
    held.after_backward(state)
    assert torch.allclose(model.gates.log_alpha.grad, expected)
    assert held.multipliers == pytest.approx((2 + 0.5 * gap.item(), 3 + 0.5 * gap.item() ** 2))


def test_resumes_exactly(tmp_path):
    model, held = go(0.4, steps=20)
    file = tmp_path / "run.lac"

    class Interrupt(Lagrangian):
        def after_step(self, state):
            if state.step == 13:
                raise KeyboardInterrupt

    again = Gated()
    with pytest.raises(KeyboardInterrupt):
        train(
            again, [0], lambda m, _: m.loss(), optimizer=partial(torch.optim.Adam, lr=0.1), steps=20,
            callbacks=[Interrupt(again.share, 0.4, stiffness=30, schedule=HALF_WAY), BoundGates()],
            checkpoint=file, checkpoint_every=5,
        )  # fmt: skip
    other, resumed = go(0.4, steps=20, checkpoint=file, checkpoint_every=5)
    assert torch.equal(other.gates.log_alpha, model.gates.log_alpha)
    assert resumed.gaps == held.gaps and resumed.multipliers == held.multipliers


def test_bad_rate():
    with pytest.raises(UsageError):
        Lagrangian(lambda: torch.ones(()), 0.5, rate=0)
    with pytest.raises(UsageError):
        Lagrangian(lambda: torch.ones(()), 0.5, stiffness=-1)
    with pytest.raises(UsageError):
        BoundGates(0)
