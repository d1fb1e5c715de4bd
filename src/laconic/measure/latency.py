"""How long a forward pass takes, from a table of measured multiplications.

A search cannot time every candidate. The table times single operations at widths of a fixed grid,
keeps them on disk, and interpolates between them. What a block does besides (norms, activations,
residuals) is measured once, and taken to grow with the numbers that its multiplications give.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from laconic.errors import UnsupportedModel, UsageError
from laconic.measure.counts import Counts
from laconic.measure.flops import Inputs, call, count, moved
from laconic.measure.operations import DENSE, Operation
from laconic.measure.speed import ROUNDS
from laconic.measure.synthetic import runner
from laconic.measure.timing import Clock, time_call
from laconic.measure.timings import TimingsFile
from laconic.models.layout import find_blocks
from laconic.models.source import ModelSource

Keep = Literal["median", "least"]
LARGEST = 40  # the grid ends at 2 ** LARGEST

#: The sizes of each kind between whose values times are interpolated; all others must be equal.
WIDTHS = {
    "linear": ("inputs", "outputs"),
    "conv": ("inputs", "outputs"),
    "embedding": ("width",),
    "attention": ("heads",),
    "product": ("batch",),
    "experts": ("inner",),
}
GRID = sorted({1, *(step << k for k in range(LARGEST) for step in (2, 3))})  # 1 2 3 4 6 8 12 ...


@dataclass(frozen=True)
class Prediction:
    """Predicted time of a forward pass.

    Attributes:
        blocks: seconds by path of the block.
        outside: seconds of embeddings, heads and the rest.
    """

    blocks: dict[str, float]
    outside: float

    @property
    def seconds(self) -> float:
        """Of the whole pass."""
        return sum(self.blocks.values()) + self.outside

    @property
    def milliseconds(self) -> float:
        """Of the whole pass; what a budget such as `20ms` limits."""
        return 1000 * self.seconds


class LatencyTable:
    """Measured times by shape, for one device, number of threads, dtype and version of torch.

    Args:
        path: JSON file that keeps the times; other devices' stay in it. None keeps them in memory.
        device: where to measure.
        threads: of torch; as many as it has by default.
        dtype: of weights and activations.
        rounds: of each measurement.
        clock: see `time_call`.
        keep: `median` of the rounds; or `least`, for machines that others disturb.
        measure: whether to measure what is missing; otherwise it is an error.

    Raises:
        CorruptFile: `path` is there and holds no such table.

    Example:
        >>> table = LatencyTable(threads=1, rounds=1)
        >>> table.seconds(Operation.of("linear", rows=8, inputs=24, outputs=40)) > 0
        True
    """

    def __init__(
        self, path: Path | None = None, *, device: torch.device | str = "cpu",
        threads: int | None = None, dtype: torch.dtype = torch.float32, rounds: int = ROUNDS,
        clock: Clock = "wall", keep: Keep = "median", measure: bool = True,
    ) -> None:  # fmt: skip
        self.device, self.dtype = torch.device(device), dtype
        self.threads = threads or torch.get_num_threads()
        self.rounds, self.clock, self.keep, self.measure = rounds, clock, keep, measure
        self._file = TimingsFile(path, self.environment)

    @property
    def environment(self) -> str:
        """What the times hold for, as the file names it."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{self.device.type} {_processor()}"
        dtype = str(self.dtype).removeprefix("torch.")
        how = f"{self.keep} {self.clock}"
        return f"{name} | {self.threads} threads | torch {torch.__version__} | {dtype} | {how}"

    def __len__(self) -> int:
        """How many times it holds."""
        return len(self._file)

    def seconds(self, operation: Operation) -> float:
        """The time of an operation: log-linear between the widths of the grid that enclose its own.

        Never less for a larger width: measured times that contradict that are evened out. A
        compressed weight is measured as it is, with no other widths to interpolate between.

        Raises:
            UsageError: it is not in the table, and the table may not measure.
        """
        if operation.format != DENSE:
            return self._measured(operation)
        names = _widths(operation)
        brackets = [_bracket(operation[name]) for name in names]
        total = 0.0
        for corner in itertools.product(*brackets):
            weight = math.prod(share for _, share in corner)
            at = operation.with_sizes(**{n: line for n, (line, _) in zip(names, corner)})
            self._measured(at)
            total += weight * math.log(self._isotone(at, names))
        return math.exp(total)

    def calibrate(self, model: nn.Module, inputs: Inputs) -> Prediction:
        """Measures what blocks, and the model around them, do besides multiplying.

        Args:
            model: with its weights, on the table's device. Blocks of one class that see equally many
                tokens are taken to do the same besides multiplying, for each number that they
                multiply out.
            inputs: one batch of what the model will be given.

        Returns:
            What `predict` says about `model` now.
        """
        inputs = _without_cache(model, moved(inputs, self.device))
        counts = count(model, inputs)
        with torch.inference_mode():
            calls = _block_calls(model, inputs)
            whole = self._time(lambda: call(model, inputs))
            blocks = 0.0
            known: dict[str, float] = {}
            for path, function in calls.items():
                key = _rest_key(model, path, counts.below(path))
                if key not in known:
                    known[key] = self._time(function)
                    self._put_rest(key, known[key], counts.below(path))
                blocks += known[key]
        outside = _outside(counts, list(calls))
        self._put_rest(_rest_key(model, "", outside), whole - blocks, outside)
        self._file.save()
        return self.predict(model, inputs)

    def predict(self, model: nn.Module | ModelSource, inputs: Inputs) -> Prediction:
        """The time of a forward pass, block by block.

        Args:
            model: with or without weights, of any widths.
            inputs: of the batch and length that `calibrate` saw.

        Raises:
            UsageError: `calibrate` has not seen such blocks, or an operation is missing and the
                table may not measure.
        """
        module = model.skeleton if isinstance(model, ModelSource) else model
        counts = count(module, inputs)
        paths = _blocks(module)
        blocks = {path: self._part(module, path, counts.below(path)) for path in paths}
        outside = self._part(module, "", _outside(counts, paths))
        self._file.save()
        return Prediction(blocks, outside)

    def _part(self, model: nn.Module, path: str, counts: Counts) -> float:
        key = _rest_key(model, path, counts)
        rest = self._file.get(key)
        if rest is None:
            raise UsageError(f"nothing is known of {key}: call calibrate with such a model first")
        return self._sum(counts) + rest * _results(counts)

    def _put_rest(self, key: str, seconds: float, counts: Counts) -> None:
        """What is left of `seconds`, for each number that the multiplications give."""
        rest = seconds - self._sum(counts)
        self._file.put(key, max(0.0, rest) / _results(counts))

    def _sum(self, counts: Counts) -> float:
        operations = [o for module in counts.by_module.values() for o in module.operations]
        return sum(self.seconds(operation) for operation in operations)

    def _measured(self, operation: Operation) -> float:
        """The time at exactly these sizes."""
        key = _key(operation)
        found = self._file.get(key)
        if found is None:
            if not self.measure:
                raise UsageError(f"{key} is not in the table, and measure=False")
            with torch.inference_mode():
                found = self._time(runner(operation, self.device, self.dtype))
            self._file.put(key, found)
        return found

    def _isotone(self, operation: Operation, names: tuple[str, ...]) -> float:
        """The time at a point of the grid, made to rise with every width.

        The mean of the most that any smaller point took and the least that any larger one took (in
        logarithms); the measured time itself where all are in order.
        """
        here = [operation[name] for name in names]
        smaller, larger = [], []
        for widths, value in self._file.family(_family(operation)):
            if all(a <= b for a, b in zip(widths, here)):
                smaller.append(value)
            if all(a >= b for a, b in zip(widths, here)):
                larger.append(value)
        return math.sqrt(max(smaller) * min(larger))

    def _time(self, function: Callable[[], object]) -> float:
        timing = time_call(
            function, rounds=self.rounds, threads=self.threads, clock=self.clock, device=self.device
        )
        return timing.seconds if self.keep == "median" else timing.least


def _widths(operation: Operation) -> tuple[str, ...]:
    """The sizes that are interpolated; grouped convolutions must be met exactly."""
    grouped = operation.kind == "conv" and operation["groups"] > 1
    return () if grouped else WIDTHS[operation.kind]


def _bracket(width: int) -> list[tuple[int, float]]:
    """The one or two lines of the grid around `width`, each with its share."""
    above = next(line for line in GRID if line >= width)
    if above == width:
        return [(width, 1.0)]
    below = GRID[GRID.index(above) - 1]
    share = math.log(width / below) / math.log(above / below)
    return [(below, 1 - share), (above, share)]


def _family(operation: Operation) -> str:
    """Kind, format and the sizes that must be equal."""
    names = _widths(operation)
    fixed = [f"{name}={size}" for name, size in operation.sizes if name not in names]
    return " ".join([operation.kind, f"[{operation.format}]", *fixed])


def _key(operation: Operation) -> str:
    """The family, and the widths."""
    widths = [str(operation[name]) for name in _widths(operation)]
    return f"{_family(operation)} @ {' '.join(widths)}"


def _results(counts: Counts) -> int:
    operations = [o for module in counts.by_module.values() for o in module.operations]
    return max(1, sum(operation.results for operation in operations))


def _rest_key(model: nn.Module, path: str, counts: Counts) -> str:
    """What a block does besides multiplying: by its class, and the first thing that it multiplies."""
    operations = [o for module in counts.by_module.values() for o in module.operations]
    first = next((o for o in operations if o.kind != "embedding"), None)
    place = "a" if path else "around the blocks of a"
    name = type(model.get_submodule(path)).__name__
    return (
        f"rest of {place} {name} | {'' if first is None else _family(replace(first, format=DENSE))}"
    )


def _blocks(model: nn.Module) -> list[str]:
    try:
        return find_blocks(model)
    except UnsupportedModel:
        return []


def _outside(counts: Counts, paths: list[str]) -> Counts:
    inside = tuple(f"{path}." for path in paths)
    kept = {p: c for p, c in counts.by_module.items() if not f"{p}.".startswith(inside)}
    return Counts(kept)


def _block_calls(model: nn.Module, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Each block with the arguments that it is called with."""
    calls: dict[str, Callable[[], object]] = {}
    handles = []
    for path in _blocks(model):
        block = model.get_submodule(path)

        def keep(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            calls[path] = lambda: module(*args, **kwargs)

        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _without_cache(model: nn.Module, inputs: Inputs) -> Inputs:
    """A cache would grow with every round."""
    config = getattr(model, "config", None)
    if isinstance(inputs, dict) and getattr(config, "use_cache", None):
        return inputs | {"use_cache": False}
    return inputs


def _processor() -> str:
    """The name of the CPU."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
