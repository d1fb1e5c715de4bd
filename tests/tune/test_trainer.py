import importlib.util
from functools import partial

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from laconic.errors import CorruptFile
from laconic.tune.loop import train
from laconic.tune.state import Callback
from laconic.tune.trainer import trainer_callback
from tests.models.tiny import TINY


class Pull(Callback):
    """Adds a gradient, counts, notes what it sees and may end the run."""

    def __init__(self, last=None):
        self.seen, self.last, self.count = [], last, 0

    def on_start(self, state):
        self.seen.append(("start", state.step, state.steps))

    def before_step(self, state):
        self.seen.append(("before", state.step))

    def after_backward(self, state):
        self.count += 1
        self.seen.append(("backward", state.step))
        (self.count * sum(p.sum() for p in state.model.parameters())).backward()

    def after_step(self, state):
        self.seen.append(("after", state.step))
        state.stop = state.step == self.last

    def on_end(self, state):
        self.seen.append(("end", state.step))

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Arguments:
    logging_strategy = eval_strategy = save_strategy = "no"
    logging_first_step = False
    eval_delay = 0

    def __init__(self, folder):
        self.output_dir = str(folder)


class Loop:
    """Trains by hand, telling transformers' own `CallbackHandler` the events in the Trainer's order."""

    def __init__(self, folder, model, callbacks, steps):
        self.args, self.model = Arguments(folder), model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.state, self.control = TrainerState(max_steps=steps), TrainerControl()
        self.adapter = trainer_callback(callbacks)
        self.handler = CallbackHandler([self.adapter], model, None, self.optimizer, None)

    def tell(self, event):
        self.control = getattr(self.handler, event)(self.args, self.state, self.control)

    def run(self, save_at=None):
        self.tell("on_train_begin")
        while (
            self.state.global_step < self.state.max_steps and not self.control.should_training_stop
        ):
            self.tell("on_epoch_begin")
            self.tell("on_step_begin")
            loss(self.model, X).backward()
            self.tell("on_pre_optimizer_step")
            self.optimizer.step()
            self.tell("on_optimizer_step")
            self.model.zero_grad()
            self.state.global_step += 1
            self.tell("on_step_end")
            self.state.log_history.append({"loss": float(self.state.global_step)})
            if self.state.global_step == save_at:
                self.tell("on_save")
        self.tell("on_train_end")


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def loss(model, batch):
    return model(batch).square().mean()


def linear():
    torch.manual_seed(2)
    return nn.Linear(3, 2)


def test_does_what_laconics_own_loop_does(tmp_path):
    theirs, ours = linear(), linear()
    one, two = Pull(last=4), Pull(last=4)
    Loop(tmp_path, theirs, [one], 9).run()
    history = train(
        ours,
        [X],
        loss,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        steps=9,
        callbacks=[two],
        precision="fp32",
    )
    assert one.seen == two.seen and one.seen[0] == ("start", 0, 9) and one.seen[-1] == ("end", 4)
    assert history.stopped
    assert torch.equal(theirs.weight, ours.weight) and torch.equal(theirs.bias, ours.bias)


def test_is_a_trainer_callback_that_knows_the_logged_loss(tmp_path):
    loop = Loop(tmp_path, linear(), [Pull()], 3)
    assert isinstance(loop.adapter, TrainerCallback)
    loop.run()
    assert loop.adapter.state.loss == 3.0 and loop.adapter.state.optimizer is loop.optimizer


def test_states_go_with_the_trainers_checkpoints(tmp_path):
    whole = Loop(tmp_path, linear(), [Pull()], 6)
    whole.run(save_at=4)
    again = Loop(tmp_path, linear(), [resumed := Pull()], 6)
    again.state.global_step = 4
    again.run()
    assert resumed.count == 6
    assert [path.name for path in tmp_path.rglob("*.lac")] == ["callbacks.lac"]
    for callbacks in ([], [Pull(), Pull()]):
        other = Loop(tmp_path, linear(), callbacks, 6)
        other.state.global_step = 4
        with pytest.raises(CorruptFile, match="not the states"):
            other.run()
    (tmp_path / "checkpoint-4" / "callbacks.lac").write_bytes(b"x")
    again = Loop(tmp_path, linear(), [Pull()], 6)
    again.state.global_step = 4
    with pytest.raises(CorruptFile, match="no states"):
        again.run()


def test_only_one_process_writes(tmp_path):
    loop = Loop(tmp_path, linear(), [Pull()], 2)
    loop.state.is_world_process_zero = False
    loop.run(save_at=1)
    assert not list(tmp_path.rglob("*.lac"))


if importlib.util.find_spec("accelerate"):  # the Trainer itself needs it

    def test_inside_the_trainer(tmp_path):
        from transformers import Trainer, TrainingArguments

        model, pull = TINY["gpt2"].model(), Pull(last=3)
        ids = TINY["gpt2"].inputs()["input_ids"]
        data = [{"input_ids": row, "labels": row} for row in ids]
        args = TrainingArguments(
            str(tmp_path), max_steps=6, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            save_steps=2, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, args, train_dataset=data, callbacks=[trainer_callback([pull])]).train()
        steps = [("before", "backward", "after")] * 3
        assert [name for name, *_ in pull.seen[1:-1]] == [name for step in steps for name in step]
        assert (tmp_path / "checkpoint-2" / "callbacks.lac").is_file()
