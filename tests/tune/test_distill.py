import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from laconic.errors import DataError, UsageError
from laconic.tune import distill
from laconic.tune.distill import (
    hidden_cosine,
    hidden_mse,
    jensen_shannon,
    kl,
    logits_mse,
    reverse_kl,
    through_head,
    top_k_kl,
)

LOSSES = {
    "kl": kl,
    "kl at 3": partial(kl, temperature=3.0),
    "reverse": reverse_kl,
    "js": jensen_shannon,
    "js 0.1": partial(jensen_shannon, beta=0.1, temperature=2.0),
    "mse": logits_mse,
    "top 3": partial(top_k_kl, k=3),
    "top all": partial(top_k_kl, k=99, temperature=2.0),
    "hidden": hidden_mse,
    "cosine": hidden_cosine,
}


def pair(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


def by_hand(name, s, t):
    """(...) losses straight from the definitions, in float64."""
    s, t = s.double(), t.double()
    at = lambda x, temperature=1.0: (x / temperature).softmax(-1)  # noqa: E731
    div = lambda p, q: (p * (p / q).log()).sum(-1)  # noqa: E731
    if name == "kl":
        return div(at(t), at(s))
    if name == "kl at 3":
        return 9 * div(at(t, 3), at(s, 3))
    if name == "reverse":
        return div(at(s), at(t))
    if name.startswith("js"):
        beta, temperature = (0.1, 2.0) if name == "js 0.1" else (0.5, 1.0)
        p, q = at(t, temperature), at(s, temperature)
        m = beta * p + (1 - beta) * q
        return (beta * div(p, m) + (1 - beta) * div(q, m)) * temperature**2
    if name == "top 3":
        p, q = at(t), at(s)
        index = p.topk(3).indices
        p, q = p.gather(-1, index), q.gather(-1, index)
        rest = lambda x: torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1)  # noqa: E731
        return div(rest(p), rest(q))
    if name == "top all":
        return 4 * div(at(t, 2), at(s, 2))
    if name == "cosine":
        return 1 - F.cosine_similarity(s, t, dim=-1)
    return (s - t).square().mean(-1)


@pytest.mark.parametrize("name", LOSSES)
def test_values_are_those_of_the_definitions(name):
    s, t = pair(2, 5, 7)
    assert LOSSES[name](s, t).item() == pytest.approx(by_hand(name, s, t).mean().item(), rel=1e-5)
    keep = torch.rand(2, 5) > 0.5
    expected = by_hand(name, s, t)[keep].mean().item()
    assert LOSSES[name](s, t, mask=keep).item() == pytest.approx(expected, rel=1e-5)
    assert LOSSES[name](s, s).item() == pytest.approx(0, abs=1e-6)
    assert LOSSES[name](s[0, 0], t[0, 0]).item() == pytest.approx(
        by_hand(name, s, t)[0, 0].item(), rel=1e-4
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, monkeypatch):
    monkeypatch.setattr(distill, "PRECISION", torch.float64)
    s, t = (x.double() for x in pair(3, 6))
    keep = torch.tensor([True, False, True])
    assert gradcheck(lambda s: LOSSES[name](s, t, mask=keep), s.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_change_nothing(name, monkeypatch):
    s, t = pair(4, 9, 8)
    s.requires_grad_()
    whole = LOSSES[name](s, t)
    (expected,) = torch.autograd.grad(whole, s)
    monkeypatch.setattr(distill, "ELEMENTS", 20)
    parts = LOSSES[name](s, t)
    (found,) = torch.autograd.grad(parts, s)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(found, expected, atol=1e-8)


def test_no_more_than_a_chunk_is_kept_for_the_gradient(monkeypatch):
    monkeypatch.setattr(distill, "ELEMENTS", 100)
    s, t = pair(64, 50)
    s, kept = s.requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        loss = kl(s, t)
    assert sum(x.numel() for x in kept if x.data_ptr() not in (s.data_ptr(), t.data_ptr())) < 1000
    loss.backward()


def test_half_precision_logits_and_autocast():
    s, t = pair(4, 9)
    exact = kl(s.bfloat16(), t.bfloat16())
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kl(s.bfloat16(), t.bfloat16()), exact)


@given(st.integers(0, 50), st.integers(1, 12))
def test_the_bucket_only_loses_information(seed, k):
    s, t = pair(3, 10, seed=seed)
    assert top_k_kl(s, t, k=k) <= kl(s, t) + 1e-6
    assert top_k_kl(s, t, k=k) >= -1e-6


def test_the_bucket_of_a_certain_teacher_is_finite():
    s, t = torch.zeros(1, 5, requires_grad=True), torch.tensor([[200.0, 0, 0, 0, 0]])
    loss = top_k_kl(s, t, k=1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5), rel=1e-5) and s.grad.isfinite().all()


def test_jensen_shannon_goes_to_both_kls():
    s, t = pair(5, 6)
    assert (jensen_shannon(s, t, beta=1e-3) / 1e-3).item() == pytest.approx(
        kl(s, t).item(), rel=0.01
    )
    near_1 = jensen_shannon(s, t, beta=0.999) / 1e-3
    assert near_1.item() == pytest.approx(reverse_kl(s, t).item(), rel=0.01)
    assert jensen_shannon(s, t).item() == pytest.approx(jensen_shannon(t, s).item())


def test_the_squared_temperature_keeps_gradients_of_one_size():
    s, t = pair(3, 50)
    sizes = []
    for temperature in (10.0, 100.0):
        s = s.detach().requires_grad_()
        kl(0.01 * s, 0.01 * t, temperature=temperature).backward()
        sizes.append(s.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_projections():
    s, _ = pair(3, 4)
    _, t = pair(3, 6)
    projection = nn.Linear(4, 6)
    loss = hidden_mse(s, t, projection=projection)
    loss.backward()
    assert loss.item() == pytest.approx((projection(s) - t).square().mean().item(), rel=1e-5)
    assert projection.weight.grad.abs().sum() > 0
    assert hidden_cosine(s, t, projection=projection) > 0


@pytest.mark.parametrize("positions", [1, 4, 100])
def test_through_the_heads(positions):
    s, t = pair(2, 5, 4)
    s.requires_grad_()
    heads = nn.Linear(4, 30), nn.Linear(4, 30)
    keep = torch.rand(2, 5) > 0.3
    direct = kl(heads[0](s), heads[1](t), mask=keep)
    expected = torch.autograd.grad(direct, [s, heads[0].weight])
    loss = through_head(kl, s, t, *heads, positions=positions, mask=keep)
    found = torch.autograd.grad(loss, [s, heads[0].weight])
    assert loss.item() == pytest.approx(direct.item(), rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, expected))


def test_bad_input():
    s, t = pair(2, 3)
    bad = [
        lambda: kl(s, t[:1]),
        lambda: kl(s, t, temperature=0),
        lambda: jensen_shannon(s, t, beta=1.0),
        lambda: top_k_kl(s, t, k=0),
        lambda: kl(s, t, mask=torch.ones(3)),
        lambda: through_head(kl, s, t[:1], nn.Identity(), nn.Identity()),
        lambda: hidden_mse(s, t[:, :2]),
    ]
    for call in bad:
        with pytest.raises(UsageError):
            call()
    with pytest.raises(DataError):
        kl(s, t, mask=torch.zeros(2))
    with pytest.raises(DataError):
        kl(s[:0], t[:0])
