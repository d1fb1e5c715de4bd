import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from laconic.errors import UsageError
from laconic.tune.gates import HardConcrete, gumbel_softmax

BIG = 100_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.9, 0.99])
def test_open_as_often_as_the_formula_says(keep):
    gates = HardConcrete(BIG, keep=keep)
    z = gates.sample(seeded())
    assert gates.open().mean().item() == pytest.approx(keep, abs=1e-5)
    assert (z > 0).float().mean().item() == pytest.approx(keep, abs=0.01)
    assert gates.expected_l0().item() == pytest.approx(keep * BIG, rel=1e-4)


def test_draws_reach_both_ends_and_all_between():
    z = HardConcrete(BIG, log_alpha=0.0).sample(seeded())
    assert (z == 0).float().mean() > 0.1 and (z == 1).float().mean() > 0.1
    assert ((z > 0.4) & (z < 0.6)).any()


def test_the_formula_is_the_papers():
    """q(z != 0) = sigmoid(log alpha - beta log(-gamma / zeta)), equation 12."""
    gates = HardConcrete(3, log_alpha=0.7)
    beta, gamma, zeta = 2 / 3, torch.tensor(-0.1), torch.tensor(1.1)
    expected = torch.sigmoid(0.7 - beta * torch.log(-gamma / zeta))
    assert torch.allclose(gates.open(), expected.expand(3))
    stretched = torch.sigmoid(torch.tensor(0.7)) * 1.2 - 0.1
    assert torch.allclose(gates.eval()(), stretched.expand(3))


def test_modes_and_generators():
    gates = HardConcrete(50, log_alpha=0.0)
    assert torch.equal(gates(seeded(1)), gates(seeded(1)))
    assert not torch.equal(gates(seeded(1)), gates(seeded(2)))
    assert torch.equal(gates.eval()(), gates()) and "(50,)" in repr(gates)


def test_gradients():
    gates = HardConcrete(4, log_alpha=0.3).double()
    start = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def drawn(value):
        gates.log_alpha = None
        del gates.log_alpha
        gates.log_alpha = value
        u = torch.linspace(0.3, 0.7, 4, dtype=torch.float64)
        return gates._stretched((u.logit() + gates.log_alpha) / gates.beta), gates.open()

    assert gradcheck(drawn, (start,))


def test_penalty_shuts_gates_and_a_loss_keeps_those_it_needs():
    torch.manual_seed(0)
    gates, needed = HardConcrete(8, keep=0.9), torch.arange(8) < 3
    adam = torch.optim.Adam(gates.parameters(), lr=0.1)
    for _ in range(300):
        loss = 4 * (1 - gates())[needed].sum() + 0.5 * gates.expected_l0()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert torch.equal(gates.eval()() > 0, needed)
    assert gates.counted()[~needed].eq(0).all() and gates.counted()[needed].gt(0.5).all()


@given(st.floats(0.05, 0.95), st.integers(1, 60))
def test_counted_has_the_expected_number_of_zeros(keep, count):
    gates = HardConcrete(count, keep=keep)
    gates.log_alpha.data += torch.linspace(-1, 1, count)
    z = gates.counted()
    zeros = round(count - gates.expected_l0().item())
    assert (z == 0).sum() == zeros
    assert (z[:zeros] == 0).all()


@pytest.mark.parametrize("settings", [{"keep": 0.0}, {"keep": 1.0}, {"beta": 0}, {"gamma": 0.0}, {"zeta": 1.0}])  # fmt: skip
def test_bad_settings(settings):
    with pytest.raises(UsageError):
        HardConcrete(2, **settings)
    with pytest.raises(UsageError):
        gumbel_softmax(torch.ones(2), temperature=0)


def test_gumbel_draws_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = gumbel_softmax(logits.expand(BIG, 3), hard=True, generator=seeded())
    assert torch.equal(draws.sum(1), torch.ones(BIG)) and set(draws.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(draws.mean(0), logits.softmax(0), atol=0.01)


def test_gumbel_gradients_and_temperature():
    logits = torch.randn(5, 4, requires_grad=True)
    weights = torch.randn(5, 4)
    soft, hard = (
        torch.autograd.grad((gumbel_softmax(logits, hard=h, generator=seeded(3)) * weights).sum(), logits)[0]
        for h in (False, True)
    )  # fmt: skip
    assert torch.allclose(soft, hard) and soft.abs().sum() > 0
    cold = gumbel_softmax(logits, temperature=1e-3, generator=seeded(4))
    assert torch.allclose(cold.max(1).values, torch.ones(5), atol=1e-3)
    assert gumbel_softmax(logits.T, dim=0, generator=seeded()).sum(0).allclose(torch.ones(5))
