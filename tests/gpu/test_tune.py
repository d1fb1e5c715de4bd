"""Training on a CUDA device: near the CPU's, resumed to the bit, and compressed weights that learn."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.runner import RunOptions, run_layers
from laconic.models.memory import MemorySource
from laconic.models.sink import NoSink
from laconic.tensors import IntQuantizer
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from laconic.tune import distill, estimators, gates
from laconic.tune.adapters import add_lora, lora_parameters, merge_lora
from laconic.tune.batches import Shuffled
from laconic.tune.blocks import fit_block
from laconic.tune.callbacks import KeepBest
from laconic.tune.loop import train
from laconic.tune.schedules import cosine
from laconic.tune.subsets import train_only
from laconic.tune.tunable import Tunable
from tests.calibrate.test_calibrated import data as sequences
from tests.gpu.near import assert_near
from tests.models.tiny import TINY
from tests.tune.test_loop import ADAM, Interrupt, build, data, squared, state_of


def run(model, device, steps=12, **settings):
    settings = {"optimizer": ADAM, "schedule": cosine, "clip": 0.5, "seed": 7} | settings
    return train(
        model, Shuffled(data(), 4, seed=2), squared, steps=steps, device=device, **settings
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_learns_what_the_cpu_learns(device, precision, accumulate):
    """Without dropout, whose draws are the device's own, and without biases that a norm undoes, whose
    gradients are rounding alone.
    """
    found = {}
    for place in (device, "cpu"):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(place)
        history = run(model, place, precision=precision, accumulate=accumulate)
        found[place] = torch.tensor(history.loss), state_of(model).cpu()
    tolerance = 5e-3 if precision == "fp32" else 0.1
    assert_near(found[device], found["cpu"], "cpu", rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_goes_on_to_the_same_bits(device, precision, tmp_path):
    """With dropout, running statistics, Adam's moments and a callback that keeps the best."""
    ends = []
    for stop in (None, 5):
        model = build().to(device)
        probe = data(8)["x"].to(device)
        settings = {
            "precision": precision,
            "checkpoint": tmp_path / f"{stop}.lac",
            "checkpoint_every": 2,
        }

        def callbacks(model=model, probe=probe):
            return [KeepBest(lambda: float(model(probe).abs().mean()), every=3)]

        if stop:
            with pytest.raises(KeyboardInterrupt):
                run(model, device, callbacks=[*callbacks(), Interrupt(stop)], **settings)
            model = build().to(device)
            given = partial(callbacks, model)
            run(model, device, callbacks=[*given(), Interrupt(-1)], **settings)
        else:
            run(model, device, callbacks=[*callbacks(), Interrupt(-1)], **settings)
        ends.append(state_of(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", ["plain", "masked", "scale"])
def test_lora(device, kind):
    """Adapters start with the same draws, learn alike, and merge into layers where these are."""
    found = {}
    for place in (device, "cpu"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        with torch.no_grad():
            model[0].weight[:, 0] = 0
        model.to(place)
        add_lora(model, rank=2, kind=kind, seed=3)
        assert {p.device.type for p in lora_parameters(model)} == {torch.device(place).type}
        history = run(model, place, precision="fp32")
        merge_lora(model)
        found[place] = torch.tensor(history.loss), model[0].weight.detach().cpu()
        if kind != "plain":
            assert (model[0].weight[:, 0] == 0).all()
    assert_near(found[device], found["cpu"], "cpu", rtol=1e-2, atol=1e-2)


def test_lora_over_a_compressed_model(device):
    from laconic.compression import compress
    from laconic.quantize.rtn import RTN

    model = TINY["qwen3"].model()
    compress(model, RTN(bits=3, group=16), options=RunOptions(device=device))
    model.to(device)
    add_lora(model, rank=2)
    inputs = TINY["qwen3"].inputs()["input_ids"]
    history = train(
        model, [inputs], lambda m, x: m(input_ids=x, labels=x).loss, optimizer=ADAM, steps=6,
        precision="bf16",
    )  # fmt: skip
    assert history.loss[-1] < history.loss[0]
    merge_lora(model)
    assert model(input_ids=inputs.to(device)).logits.isfinite().all()


def fitted(place, what):
    """The errors of a quantized block before and after its norms, or its scales, were fitted."""
    torch.manual_seed(3)
    good = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 6)).eval()
    bad, free = copy.deepcopy(good), None
    for path in ("0", "3"):
        value = IntQuantizer(3, 6).quantize(good.get_submodule(path).weight.detach())
        value = Tunable.of(value, ["scale"]) if what == "scale" else value
        replace_module(bad, path, {"weight": Record(value)})
    good.to(place), bad.to(place)
    if what == "scale":
        free = [p for m in (bad[0], bad[3]) for p in m.weight.values.values()]
        assert {p.device.type for p in free} == {torch.device(place).type}
    else:
        train_only(bad, "norm", "bias")
    x = torch.randn(12, 1, 9, 6, generator=torch.Generator().manual_seed(1)).to(place)
    return fit_block(
        bad, lambda i: bad(x[i]), lambda i: good(x[i]), range(12), parameters=free, rate=0.003,
        epochs=4, batch=4,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["norm", "scale"])
def test_blocks(device, what):
    ours, theirs = fitted(device, what), fitted("cpu", what)
    assert ours.after < ours.before and theirs.after < theirs.before
    assert ours.before == pytest.approx(theirs.before, rel=1e-3)
    assert ours.after == pytest.approx(theirs.after, rel=5e-2)


def test_a_block_without_parameters_stays_where_it_is(device):
    """Its weights are values, which a search for its parameters does not see."""
    block = nn.Sequential(nn.Linear(6, 6, bias=False))
    value = Tunable.of(IntQuantizer(3, 6).quantize(block[0].weight.detach()), ["scale"])
    replace_module(block, "0", {"weight": Record(value)})
    block.to(device)
    free, x = list(block[0].weight.values.values()), torch.randn(5, 1, 3, 6).to(device)
    fit_block(block, lambda i: block(x[i]), lambda i: 2 * x[i], range(5), parameters=free, epochs=1)
    assert block[0].weight.device.type == torch.device(device).type


def test_a_calibrated_block(device):
    """Inside of a run, with what the runner hands to a block's step."""
    from tests.calibrate.chains import Halves

    fits = []

    class Step(Halves):
        def revise_block(self, view):
            super().revise_block(view)
            dense = copy.deepcopy(view.live.module)
            train_only(view.live.module, "norm")
            fits.append(
                fit_block(
                    view.live.module, view.output, partial(view.target, dense=dense),
                    view.sequences, epochs=1, rate=1e-3,
                )
            )  # fmt: skip

    given = Calibration(tuple(sequences("llama")), None, range(8), range(8, 10))
    source = MemorySource(TINY["llama"].model())
    run_layers(source, NoSink(), [Step()], calibration=given, options=RunOptions(device=device))
    assert len(fits) == 2 and not any(fit.diverged for fit in fits)


STUDENT, TEACHER = (
    torch.randn(3, 7, 40, generator=torch.Generator().manual_seed(n)) for n in (1, 2)
)
MASK = torch.arange(21).reshape(3, 7) % 4 > 0
#: Losses of a student (…, V) against a teacher under a mask.
LOSSES = {
    "kl": partial(distill.kl, temperature=2.0),
    "reverse kl": distill.reverse_kl,
    "jensen shannon": distill.jensen_shannon,
    "mse": distill.logits_mse,
    "top k": partial(distill.top_k_kl, k=5),
    "hidden mse": distill.hidden_mse,
    "hidden cosine": distill.hidden_cosine,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_distillation(device, name, masked):
    """The mask may be left on the CPU."""
    found = {}
    for place in (device, "cpu"):
        student = STUDENT.clone().to(place).requires_grad_()
        loss = LOSSES[name](student, TEACHER.to(place), mask=MASK if masked else None)
        loss.backward()
        found[place] = loss, student.grad
    assert_near(found[device], found["cpu"], device, rtol=1e-3, atol=1e-4)


def test_through_heads(device):
    found = {}
    for place in (device, "cpu"):
        torch.manual_seed(0)
        heads = [nn.Linear(40, 30).to(place) for _ in range(2)]
        student = STUDENT.clone().to(place).requires_grad_()
        loss = distill.through_head(
            distill.kl, student, TEACHER.to(place), *heads, mask=MASK.to(place)
        )
        loss.backward()
        found[place] = loss, student.grad
    assert_near(found[device], found["cpu"], device, rtol=1e-3, atol=1e-4)


#: Functions of x (4, 8) with gradients.
ESTIMATED = {
    "round": estimators.ste_round,
    "clipped": lambda x: estimators.clipped_round(x, -1, 1),
    "sign": estimators.ste_sign,
    "fake": lambda x: estimators.fake_quantize(x, torch.full_like(x[:, :1], 0.25), 1.0, 0, 7),
    "lsq": lambda x: estimators.lsq_quantize(x, estimators.lsq_scale(x, 3, dim=1), -4, 3),
    "scaled": lambda x: estimators.scale_gradient(x, 0.1),
}


@pytest.mark.parametrize("name", ESTIMATED)
def test_estimators(device, name):
    found = {}
    for place in (device, "cpu"):
        x = torch.linspace(-1.55, 1.62, 32).reshape(4, 8).to(place).requires_grad_()
        y = ESTIMATED[name](x)
        y.square().sum().backward()
        found[place] = y, x.grad
    assert_near(found[device], found["cpu"], device)


def test_gates(device):
    """With a generator of the CPU the draws are the same everywhere."""
    found = {}
    for place in (device, "cpu"):
        draw = torch.Generator().manual_seed(0)
        gate = gates.HardConcrete(50, keep=0.6).to(place)
        drawn = gate(draw)
        (drawn.sum() + gate.expected_l0()).backward()
        choice = gates.gumbel_softmax(STUDENT.to(place), hard=True, generator=draw)
        found[place] = drawn, gate.log_alpha.grad, gate.eval()(), gate.counted(), choice
    assert_near(found[device], found["cpu"], device, rtol=1e-3)
    assert gates.HardConcrete(5).to(device)().device.type == torch.device(device).type
    assert gates.gumbel_softmax(STUDENT.to(device)).device.type == torch.device(device).type
