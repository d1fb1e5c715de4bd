import pytest
import torch

from laconic.errors import UsageError
from laconic.tensors import BinaryQuantizer, CodebookQuantizer, Dense, FloatQuantizer, IntQuantizer
from laconic.tensors.modules import CompressedLinear
from laconic.tensors.stored import Record, decode_record, encode
from laconic.tune.tunable import Tunable


def weight(seed=0):
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))


VALUES = {
    "int": (lambda w: IntQuantizer(bits=4, group=8).quantize(w), ["scale"]),
    "float": (lambda w: FloatQuantizer().quantize(w), None),
    "binary": (lambda w: BinaryQuantizer(2).quantize(w), ["alpha"]),
    "codebook": (lambda w: CodebookQuantizer(bits=3).quantize(w), ["entries"]),
}


def make(name):
    build, names = VALUES[name]
    value = build(weight())
    real = [n for n, t in value.tensors().items() if t.is_floating_point()]
    return value, names or real


@pytest.mark.parametrize("name", VALUES)
def test_starts_as_it_was_and_learns(name):
    value, names = make(name)
    if not names:
        pytest.fail(f"{name} has nothing to tune")
    tunable = Tunable.of(value, names)
    assert torch.equal(tunable.dense(), value.dense())
    goal = 1.2 * weight()
    before = (value.dense().float() - goal).square().sum()
    rates = [
        {"params": [p], "lr": 0.01 * float(p.detach().abs().mean())}
        for p in tunable.values.values()
    ]
    adam = torch.optim.Adam(rates)
    for _ in range(60):
        adam.zero_grad()
        (tunable.dense(torch.float32) - goal).square().sum().backward()
        adam.step()
    after = tunable.settled()
    assert type(after) is type(value) and after.stored_bytes == pytest.approx(
        value.stored_bytes, rel=0.1
    )
    assert torch.equal(after.dense(), tunable.dense())  # what is trained is what is stored
    assert (after.dense().float() - goal).square().sum() < 0.9 * before
    codes = {n: t for n, t in value.tensors().items() if not t.is_floating_point()}
    assert all(torch.equal(after.tensors()[n], t) for n, t in codes.items())


def test_in_a_module_stored_as_it_settles():
    tunable = Tunable.of(*make("int"))
    layer = CompressedLinear({"weight": Record(tunable)}, None, 16, 6)
    layer(torch.randn(3, 16)).sum().backward()
    assert tunable.values["scale"].grad.abs().sum() > 0
    tunable.values["scale"].data *= 1.5
    again = decode_record(encode(layer.records["weight"])).weight
    assert torch.equal(again.dense(), tunable.dense().detach())
    assert tunable.format == make("int")[0].format and tunable.resident_bytes > 0
    moved = tunable.to("cpu")
    assert moved.device.type == "cpu" and moved.values["scale"] is tunable.values["scale"]


def test_bad_requests():
    value, _ = make("int")
    with pytest.raises(UsageError, match="did you mean 'scale'"):
        Tunable.of(value, ["scales"])
    with pytest.raises(UsageError, match="keeps no codes"):
        Tunable.of(Dense(weight()), ["value"])
    with pytest.raises(UsageError):
        Tunable.from_state(value.state())
