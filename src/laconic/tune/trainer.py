"""The same callbacks inside the Hugging Face `Trainer`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laconic.errors import CorruptFile
from laconic.tune.state import Callback, TrainState
from laconic.tune.values import read_values, write_values

FILE = "callbacks.lac"  # beside the Trainer's own files, in each of its checkpoints


def trainer_callback(callbacks: Sequence[Callback]) -> Any:
    """A `transformers.TrainerCallback` that runs `callbacks`, for `Trainer(callbacks=[...])`.

        on_train_begin        -> on_start, and what a checkpoint holds of the callbacks
        on_step_begin         -> before_step
        on_pre_optimizer_step -> after_backward; the Trainer has clipped the gradients by then
        on_step_end           -> after_step; `state.stop` ends the training
        on_save               -> their states, into the checkpoint
        on_train_end          -> on_end

    The Trainer tells no callback the loss of a step: `state.loss` is the latest that it logged.

    Args:
        callbacks: called in this order.
    """
    from transformers import TrainerCallback

    class LaconicCallback(Adapter, TrainerCallback):  # type: ignore[misc]
        """Events of the Trainer, as those of laconic's own loop."""

    return LaconicCallback(callbacks)


class Adapter:
    """Turns the Trainer's events into those of laconic's callbacks; `trainer_callback` makes one.

    Args:
        callbacks: called in this order.

    Attributes:
        state: where the run is; None before it starts.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)
        self.state: TrainState | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Starts the callbacks, and reads their states where the run goes on from a checkpoint."""
        self.state = TrainState(given["model"], given["optimizer"], state.max_steps)
        for callback in self.callbacks:
            callback.on_start(self.state)
        if state.global_step:
            self._load(_file(args, state))
        self._follow(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the batches of a step."""
        for callback in self.callbacks:
            callback.before_step(self._follow(state))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The gradients are complete."""
        for callback in self.callbacks:
            callback.after_backward(self._follow(state))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        """The optimizer has moved the parameters."""
        here = self._follow(state)
        for callback in self.callbacks:
            callback.after_step(here)
        control.should_training_stop |= here.stop
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After the last step."""
        for callback in self.callbacks:
            callback.on_end(self._follow(state))

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Writes the callbacks' states into the checkpoint that the Trainer has just written."""
        if not getattr(state, "is_world_process_zero", True):
            return
        write_values(_file(args, state), [callback.state_dict() for callback in self.callbacks])

    def _follow(self, state: Any) -> TrainState:
        """Where the run is, from what the Trainer says."""
        assert self.state is not None
        self.state.step = state.global_step
        logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self.state.loss = float(logged[-1]) if logged else self.state.loss
        return self.state

    def _load(self, path: Path) -> None:
        states = read_values(path, "states of callbacks")
        if not isinstance(states, list) or len(states) != len(self.callbacks):
            raise CorruptFile(f"{path}: not the states of {len(self.callbacks)} callbacks")
        for callback, values in zip(self.callbacks, states):
            callback.load_state_dict(values)


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
