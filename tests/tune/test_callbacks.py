import math
from functools import partial

import pytest
import torch
from torch import nn

from laconic.errors import UsageError
from laconic.tune.callbacks import KeepBest
from laconic.tune.loop import train

SGD = partial(torch.optim.SGD, lr=1.0)


class Walk(nn.Module):
    """Its one parameter goes 1, 2, 3, ... under SGD of rate 1."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))


def walk(model, values, steps=8, **settings):
    best = KeepBest(lambda: values[int(model.place)], **settings)
    history = train(model, [0], lambda m, _: -m.place, optimizer=SGD, steps=steps, callbacks=[best])
    return best, history


def test_the_best_is_kept_and_restored():
    model = Walk()
    best, history = walk(model, [9, 5, 7, 3, 4, 8, 8, 8, 8], every=1)
    assert model.place == 3 and best.best == 3 and len(history) == 8
    assert best.values == [9, 5, 7, 3, 4, 8, 8, 8, 8]


def test_never_worse_than_the_start():
    model = Walk()
    walk(model, [1, 5, math.nan, 3, 4, 8, 8, 8, 8], every=1)
    assert model.place == 0


def test_a_start_that_is_no_number_is_left():
    model = Walk()
    assert walk(model, [math.nan, 5, 4, 6, 7, 8, 8, 8, 8], every=1)[0].best == 4
    assert model.place == 2


def test_patience_and_every():
    model = Walk()
    best, history = walk(model, [9, 8, 7, 6, 8, 8, 8, 8, 8], every=1, patience=2)
    assert len(history) == 5 and history.stopped and model.place == 3
    model = Walk()
    best, _ = walk(model, [9, 0, 0, 7, 0, 0, 8, 0, 5], every=3)
    assert best.values == [9, 7, 8, 5]  # the end is measured, too
    assert model.place == 8


def test_measures_in_evaluation_mode_without_gradients():
    model, seen = nn.Linear(1, 1), []

    def measure():
        seen.append((model.training, torch.is_grad_enabled()))
        return 0.0

    train(
        model, [torch.ones(1, 1)], lambda m, x: m(x).sum(), optimizer=SGD, steps=2,
        callbacks=[KeepBest(measure, every=1)],
    )  # fmt: skip
    assert seen == [(False, False)] * 3


def test_resumes_exactly(tmp_path):
    values = [9, 5, 7, 3, 4, 8, 8, 2, 8]
    model, file = Walk(), tmp_path / "run.lac"

    def go(model, fail=None):
        best = KeepBest(lambda: values[int(model.place)], every=1)

        def loss(m, _):
            if fail is not None and m.place == fail:
                raise KeyboardInterrupt
            return -m.place

        train(model, [0], loss, optimizer=SGD, steps=6, callbacks=[best], checkpoint=file, checkpoint_every=2)  # fmt: skip
        return best

    with pytest.raises(KeyboardInterrupt):
        go(model, fail=5)
    model = Walk()
    assert go(model).values == [9, 5, 7, 3, 4, 8, 8]
    assert model.place == 3


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": 1, "patience": 0}])
def test_bad_settings(settings):
    with pytest.raises(UsageError):
        KeepBest(lambda: 0.0, **settings)
