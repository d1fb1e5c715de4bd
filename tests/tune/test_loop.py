import math
from functools import partial

import pytest
import torch
from torch import nn

from laconic.errors import CorruptFile, DataError, UsageError
from laconic.tune.batches import Shuffled
from laconic.tune.loop import train
from laconic.tune.schedules import cosine, linear
from laconic.tune.state import Callback, Diverged, History

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.AdamW, lr=1e-2)


def build(dropout=0.3):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1)
    )


def data(count=24):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def squared(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean()


class Noting(Callback):
    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith(("on_", "before_", "after_")):
            return lambda state: self.seen.append((name, state.step, state.loss))
        return super().__getattribute__(name)


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def after_step(self, state):
        state.stop = state.step == self.step


class Interrupt(Callback):
    def __init__(self, step):
        self.step = step

    def before_step(self, state):
        if state.step == self.step:
            raise KeyboardInterrupt


def state_of(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def run(model, steps=12, **settings):
    settings = {"optimizer": ADAM, "schedule": cosine, "clip": 0.5, "seed": 7} | settings
    return train(model, Shuffled(data(), 4, seed=2), squared, steps=steps, **settings)


def test_learns_and_says_how():
    model = build(0.0)
    history = run(model, steps=300, clip=None)
    assert len(history) == 300 and not history.stopped
    assert sum(history.loss[-20:]) < 0.3 * sum(history.loss[:20])
    assert history.rate[0] == pytest.approx(1e-2 / 30) and max(history.rate) == 1e-2


def test_one_step_is_what_torch_does_by_hand():
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    other.load_state_dict(model.state_dict())
    batch = data(4)
    history = train(model, [batch], squared, optimizer=SGD, steps=1, precision="fp32")
    loss = squared(other, batch)
    loss.backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter -= 0.1 * parameter.grad
    assert torch.allclose(state_of(model), state_of(other), atol=1e-7)
    assert history.loss == [loss.item()]
    norm = torch.cat([p.grad.flatten() for p in other.parameters()]).norm()
    assert history.norm == pytest.approx([norm.item()])


def test_same_seed_same_bits_and_the_callers_randomness_is_untouched():
    models = [build(), build(), build()]
    before = torch.get_rng_state()
    histories = [run(model, seed=seed) for model, seed in zip(models, (7, 7, 8))]
    assert torch.equal(torch.get_rng_state(), before)
    assert histories[0] == histories[1] != histories[2]
    assert torch.equal(state_of(models[0]), state_of(models[1]))
    assert not torch.equal(state_of(models[0]), state_of(models[2]))


@pytest.mark.parametrize("every", [1, 4, 5])
def test_interrupted_and_resumed_is_not_to_be_told_from_uninterrupted(tmp_path, every):
    whole, parts = build(), build()
    expected = run(whole)
    file = tmp_path / "deep" / "run.lac"
    for step in (3, 7, 9):
        with pytest.raises(KeyboardInterrupt):
            run(parts, checkpoint=file, checkpoint_every=every, callbacks=[Interrupt(step)])
        parts = build()  # a new process starts from the model as it was
    history = run(parts, checkpoint=file, checkpoint_every=every, callbacks=[Stop(99)])
    assert history == expected
    assert torch.equal(state_of(parts), state_of(whole))
    assert [p.name for p in file.parent.iterdir()] == ["run.lac"]


def test_a_finished_run_is_not_done_again(tmp_path):
    file = tmp_path / "run.lac"
    first, second, noting = build(), build(), Noting()
    expected = run(first, checkpoint=file)
    assert run(second, checkpoint=file, callbacks=[noting]) == expected
    assert torch.equal(state_of(first), state_of(second))
    assert [name for name, *_ in noting.seen] == ["on_start", "on_end"]


def test_a_stopped_run_stays_stopped(tmp_path):
    file = tmp_path / "run.lac"
    history = run(build(), checkpoint=file, callbacks=[Stop(5)])
    assert history.stopped and len(history) == 5
    assert run(build(), checkpoint=file, callbacks=[Callback()]) == history


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 8}, "seed"), ({"steps": 13}, "steps"), ({"clip": None}, "clip"),
        ({"optimizer": partial(torch.optim.AdamW, lr=2e-2)}, "learning rates"),
        ({"optimizer": partial(torch.optim.SGD, lr=1e-2)}, "optimizer"),
        ({"accumulate": 2}, "accumulate"),
    ],
)  # fmt: skip
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    file = tmp_path / "run.lac"
    run(build(), checkpoint=file)
    with pytest.raises(UsageError, match=named):
        run(build(), checkpoint=file, **change)
    with pytest.raises(UsageError, match="another model"):
        run(nn.Linear(4, 1), checkpoint=file)


def test_damaged_checkpoints_are_named(tmp_path):
    file = tmp_path / "run.lac"
    run(build(), checkpoint=file)
    whole = file.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(CorruptFile, match=r"run\.lac"):
            run(build(), checkpoint=file)
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(CorruptFile, match=r"run\.lac"):
            run(build(), checkpoint=file)


def test_callbacks_are_called_in_their_places():
    noting = Noting()
    run(build(), steps=2, callbacks=[noting])
    names = [(name, step) for name, step, _ in noting.seen]
    step = lambda n: [("before_step", n), ("after_backward", n), ("after_step", n + 1)]  # noqa: E731
    assert names == [("on_start", 0), *step(0), *step(1), ("on_end", 2)]
    losses = [loss for *_, loss in noting.seen]
    assert math.isnan(losses[1]) and losses[2] == losses[3] == losses[4] != losses[5]


def test_a_callback_may_add_a_gradient():
    class Pull(Callback):
        def after_backward(self, state):
            state.model.weight.sum().backward()

    model, plain = nn.Linear(4, 1), nn.Linear(4, 1)
    plain.load_state_dict(model.state_dict())
    for one, callbacks in ((model, [Pull()]), (plain, [])):
        train(one, [data(4)], squared, optimizer=SGD, steps=1, callbacks=callbacks)
    assert torch.allclose(model.weight, plain.weight - 0.1)


def test_accumulated_batches_are_one_large_batch():
    whole, parts = nn.Linear(4, 1), nn.Linear(4, 1)
    parts.load_state_dict(whole.state_dict())
    batch = data(8)
    halves = [{k: v[i : i + 4] for k, v in batch.items()} for i in (0, 4)]
    one = train(whole, [batch], squared, optimizer=SGD, steps=3, precision="fp32")
    two = train(parts, halves, squared, optimizer=SGD, steps=3, accumulate=2, precision="fp32")
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)


def test_gradients_are_clipped_and_rates_restored():
    model = nn.Linear(4, 1)
    before = state_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    history = train(
        model, [data(4)], squared, optimizer=optimizer, steps=1, clip=1e-3,
        schedule=partial(linear, warmup=1.0),
    )  # fmt: skip
    assert (state_of(model) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert history.norm[0] > 1e-3
    assert optimizer.param_groups[0]["lr"] == 1.0 and "base_lr" not in optimizer.param_groups[0]


def test_epochs():
    history = run(build(), steps=None, epochs=3)
    assert len(history) == 18
    assert len(run(build(), steps=None, epochs=3, accumulate=4)) == 4


def test_modes_are_as_before():
    model = build().eval()
    model[1].train()
    seen = []
    loss = lambda m, b: (seen.append([x.training for x in m]), squared(m, b))[1]  # noqa: E731
    train(model, [data()], loss, optimizer=SGD, steps=1)
    assert all(seen[0])
    assert [x.training for x in model] == [False, True, False, False, False]


def test_bf16_products():
    model = nn.Linear(4, 1)
    dtypes = set()

    def loss(model, batch):
        out = model(batch["x"])
        dtypes.add(out.dtype)
        return (out.float() - batch["y"]).square().mean()

    train(model, [data()], loss, optimizer=SGD, steps=1, precision="bf16")
    assert dtypes == {torch.bfloat16} and model.weight.dtype == torch.float32


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_loss_that_is_no_number_names_the_step(clip):
    model = nn.Linear(4, 1)
    good, bad = data(4), {"x": data(4)["x"], "y": torch.full((4, 1), torch.nan)}
    weight = []

    class Note(Callback):
        def after_step(self, state):
            weight.append(state.model.weight.clone())

    with pytest.raises(Diverged, match="loss is nan at step 3 of 9"):
        train(model, [good, good, bad], squared, optimizer=SGD, steps=9, callbacks=[Note()], clip=clip)  # fmt: skip
    assert torch.equal(model.weight, weight[-1])


def test_a_gradient_that_is_no_number_names_the_step():
    model = nn.Linear(4, 1)
    with pytest.raises(Diverged, match="gradient's length is nan at step 1"):
        train(model, [data(4)], lambda m, b: (m(b["x"]) * 0).abs().sqrt().sum(), optimizer=SGD, steps=2)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"steps": 1, "epochs": 1}, {"steps": -1}, {"epochs": 0}, {"steps": 1, "accumulate": 0},
        {"steps": 1, "clip": 0.0}, {"steps": 1, "checkpoint_every": 0},
        {"steps": 1, "precision": "fp8"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings):
    with pytest.raises(UsageError):
        train(nn.Linear(4, 1), [data()], squared, optimizer=SGD, **settings)


def test_bad_losses_and_data():
    model = nn.Linear(4, 1)
    with pytest.raises(UsageError, match="one number"):
        train(model, [data()], lambda m, b: m(b["x"]), optimizer=SGD, steps=1)
    with pytest.raises(UsageError, match="requires_grad=False"):
        train(model, [data()], lambda m, b: m(b["x"]).sum().detach(), optimizer=SGD, steps=1)
    with pytest.raises(DataError):
        train(model, [], squared, optimizer=SGD, steps=1)
    with pytest.raises(UsageError, match="nothing to train"):
        train(model.requires_grad_(False), [data()], squared, optimizer=SGD, steps=1)


def test_no_steps_at_all():
    assert run(build(), steps=0) == History()


def test_progress_follows():
    class Following:
        def track(self, items, what, total=None):
            seen.append((what, total))
            yield from items

    seen = []
    run(build(), steps=4, progress=Following(), device="cpu")
    assert seen == [("training", 4)]
