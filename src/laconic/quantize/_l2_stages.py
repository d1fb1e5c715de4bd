"""The two stages of `l2` in turn: grids are fitted at a price on bits, then weights on fixed grids.

    teacher -- logits, block outputs --> loss <-- student <-- decode(round(encode(latents; grid)))
                                          |                           |
                  transform: KL + price * share of bits        grid (edge and step of each layer)
                  reconstruct: error of block outputs          latents

Source: L2 compression (Shi et al., 2023), section 3; train_final.py of its code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.calibrate.calibration import Calibration
from laconic.entropy.counter import Kernel
from laconic.models.source import ModelSource
from laconic.progress import Progress
from laconic.quantize._l2_size import settle
from laconic.quantize._l2_student import Student, Teacher, look
from laconic.tune.batches import Shuffled, mixed
from laconic.tune.callbacks import KeepBest
from laconic.tune.distill import kl
from laconic.tune.loop import train
from laconic.tune.schedules import cosine
from laconic.tune.state import Callback, Diverged, TrainState

OFF = 0.01  # of the price, while the bits are below their target
GRID_RATE = 0.03  # of Adam on logarithms of edges and steps
LATENT_RATE = 4e-3  # of Adam on weights, in steps of their grid
SCHEDULE = partial(cosine, warmup=0.0, floor=0.05)
LOOKS = 4  # at the held-out sequences, in a reconstruct stage
JUDGED = 64  # sequences at most, on which it is decided whether a stage is kept
BATCH, TEXT_BATCH = 16, 4  # sequences a step: of classifiers, of language models


@dataclass(frozen=True)
class Effort:
    """How long is trained.

    Attributes:
        rounds: of both stages.
        transform: steps of the first stage in a round.
        reconstruct: steps of the second.
    """

    rounds: int
    transform: int
    reconstruct: int


@dataclass
class Stages:
    """A training on its way.

    Attributes:
        student: that is trained, its grids at the wanted size.
        teacher: that it is to answer like.
        data: what both are shown.
        bits: a weight, that are wanted.
        price: of all original bits, in nats of divergence.
        labels: weight of the cross entropy with the data's labels; none without them.
        kernel: of the counter.
        batch: sequences a step; 0 for 16, of language models 4.
        seed: of their order.
        device: where to compute.
        progress: follows the steps.
        notes: what came of it.
    """

    student: Student
    teacher: Teacher
    data: Calibration
    bits: float
    price: float
    labels: float
    kernel: Kernel
    batch: int
    seed: int
    device: str
    progress: Progress
    notes: list[str]

    def run(self, effort: Effort) -> None:
        """All rounds; weights move last, so that the size is to be settled once more.

        A later round whose grids stay where they were is the last: another would only repeat it.
        """
        for number in range(effort.rounds):
            moved = self.transform(effort.transform, mixed(self.seed, number, 0))
            self.reconstruct(effort.reconstruct, mixed(self.seed, number, 1))
            if number and not moved:
                break

    def transform(self, steps: int, seed: int) -> bool:
        """Fits edges and steps; what came of it is kept, and True, where the answers are nearer at the same size."""
        student = self.student
        grids = [student.log_edge, student.log_step]
        before, kept = self._divergence(), [grid.detach().clone() for grid in grids]

        def loss(_: nn.Module, numbers: list[int]) -> Tensor:
            student.install()
            share = (student.bits(self.kernel) + student.beside) / (32 * student.weights)
            above = float(share.detach()) > self.bits / 32
            price = self.price * (1 if above else OFF)
            return self._compare(numbers, _logits) + (price * share).float()

        groups = [{"params": grids, "lr": GRID_RATE}]
        trouble = self._fit(loss, groups, steps, seed)
        if not trouble:
            settle(student, self.bits)
        after = self._divergence()
        if trouble or not after <= before:
            with torch.no_grad():
                for grid, value in zip(grids, kept):
                    grid.copy_(value)
            settle(student, self.bits)
            trouble = trouble or "; undone"
        self.notes.append(f"transform: KL {before:.4g} to {after:.4g}{trouble}")
        return not trouble

    def reconstruct(self, steps: int, seed: int) -> None:
        """Fits what is rounded, grids fixed; the best on held-out sequences is kept."""
        student = self.student

        def loss(_: nn.Module, numbers: list[int]) -> Tensor:
            student.install()
            return self._compare(numbers, self._features)

        best = KeepBest(self._error, every=max(1, steps // LOOKS))
        groups = [
            {"params": [latent], "lr": LATENT_RATE * float(student.grid(number)[1])}
            for number, latent in enumerate(student.latents.values())
        ]
        trouble = self._fit(loss, groups, steps, seed, best)
        if trouble:
            best.restore()
        self.notes.append(
            f"reconstruct: error of blocks {best.values[0]:.4g} to {best.best:.4g}{trouble}"
        )

    def _fit(
        self, loss: Any, groups: list[dict[str, Any]], steps: int, seed: int, *callbacks: Callback
    ) -> str:
        """Trains the parameters of `groups`; what went wrong, if anything did."""
        free = [parameter for group in groups for parameter in group["params"]]
        for parameter in free:
            parameter.requires_grad_(True)
        batches = Shuffled(list(self.data.fitted), self._size, seed=seed, collate=list)
        try:
            train(
                self.student.model, batches, loss, optimizer=torch.optim.Adam(groups), steps=steps,
                schedule=SCHEDULE, callbacks=[_Evaluating(), *callbacks], precision="fp32", seed=seed,
                device=self.device, progress=self.progress,
            )  # fmt: skip
        except Diverged as error:
            return f"; undone: {error}"
        finally:
            for parameter in free:
                parameter.requires_grad_(False)
        return ""

    @property
    def _size(self) -> int:
        if self.batch:
            return self.batch
        text = self.teacher.answers(self.data.fitted[0])[0].ndim == 3
        return TEXT_BATCH if text else BATCH

    def _compare(self, numbers: Sequence[int], distance: Any) -> Tensor:
        """The mean of `distance` over sequences; those of one shape go through the model together."""
        total = torch.zeros((), device=self.device)
        for members, given in batched(self.data, numbers):
            taps = [] if distance is _logits else self.teacher.taps
            found = look(self.student.model, given, taps, self.device)
            goals = zip(*(self.teacher.answers(n)[: len(found)] for n in members))
            wanted = [torch.cat(parts) for parts in goals]
            total = total + len(members) / len(numbers) * distance(found, wanted, members)
        return total

    def _features(self, found: list[Tensor], wanted: list[Tensor], members: list[int]) -> Tensor:
        """The mean error of the blocks' outputs, as a share of their energy, and that of labels."""
        parts = [
            (a - b).square().mean() / b.square().mean().clamp(min=torch.finfo(b.dtype).tiny)
            for a, b in zip(found[1:], wanted[1:])
        ]
        error = torch.stack(parts).mean()
        targets = self.data.targets
        if targets is None or not self.labels:
            return error
        return error + self.labels * F.cross_entropy(found[0], targets[members].to(error.device))

    def _divergence(self) -> float:
        """KL of the teacher's answers from the student's, nats."""
        chosen = [*self.data.held_out, *self.data.fitted][:JUDGED]
        return self._judge(chosen, _logits)

    def _error(self) -> float:
        chosen = [*self.data.held_out][:JUDGED] or [*self.data.fitted][:JUDGED]
        return self._judge(chosen, self._features)

    @torch.no_grad()
    def _judge(self, numbers: Sequence[int], distance: Any) -> float:
        self.student.install()
        size = self._size
        parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return sum(len(p) * float(self._compare(p, distance)) for p in parts) / len(numbers)


class _Evaluating(Callback):
    """Dropout and batch statistics stay as they are when the model is used."""

    def on_start(self, state: TrainState) -> None:
        state.model.eval()


def _logits(found: list[Tensor], wanted: list[Tensor], members: list[int]) -> Tensor:
    return kl(found[0], wanted[0])


def batched(
    data: Calibration, numbers: Sequence[int]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Sequences of one shape together: their numbers, and their arguments."""
    alike: dict[Any, list[int]] = {}
    for number in numbers:
        shapes = tuple((name, value.shape) for name, value in data.inputs[number].items())
        alike.setdefault(shapes, []).append(number)
    for members in alike.values():
        names = data.inputs[members[0]]
        yield members, {name: torch.cat([data.inputs[n][name] for n in members]) for name in names}


def stages_of(source: ModelSource, data: Calibration, device: str, **settings: Any) -> Stages:
    """A training of a student of `source` on `data`."""
    teacher = Teacher(source, data.inputs, device)
    return Stages(Student(source, device), teacher, data, device=device, notes=[], **settings)
