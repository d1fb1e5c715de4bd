"""What a model does on data, as sums: one pass, fp64, the same bits whatever the batch or the threads.

A statistic is a frozen description (`SecondMoment()`); `start()` makes its sums. Observations arrive
one sequence after the other, in the order of the data. Products are taken in fp32 within a sequence,
sums over sequences in fp64. Work within one observation is cut into tasks that share nothing, so that
it can be spread over threads without changing a sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from laconic.errors import DataError

PRECISION = torch.float32  # of observations and of products within a sequence
SUMS = torch.float64  # of sums over sequences
PANEL = 64  # columns of a moment that one task adds to: bounds its temporary memory

Task = Callable[[], None]


@dataclass(frozen=True)
class Observation:
    """What one layer saw of one sequence.

    Attributes:
        inputs: (n, in) what the weight multiplied, fp32: positions, or patches of a convolution.
        outputs: (n, out) with the bias; None where no statistic is of outputs.
        gradients: (n, out) of the loss with respect to the outputs; gradient passes only.
        reference: (n, in) what the same layer of the dense model saw of the same sequence.
    """

    inputs: Tensor
    outputs: Tensor | None
    gradients: Tensor | None = None
    reference: Tensor | None = None


class Statistic(ABC):
    """Sums over observations. Subclasses are frozen dataclasses whose fields are settings.

    Attributes:
        name: in files and messages.
        of_inputs: whether it depends on the inputs alone, so that layers with one input share it.
        needs: parts of an observation that must be there besides inputs.
    """

    name: ClassVar[str]
    of_inputs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def sums(self, seen: Observation) -> dict[str, Tensor]:
        """Zeroed sums of the right shapes for what `seen` shows."""

    @abstractmethod
    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        """Adds `seen` to `sums`; tasks of one observation may run in any order, or together."""

    def merge(self, sums: dict[str, Tensor], other: Mapping[str, Tensor], weight: float) -> None:
        """Adds `weight` times other sums; extremes are combined as they are."""
        for name, tensor in sums.items():
            tensor.add_(other[name].to(tensor.dtype), alpha=weight)

    @property
    def key(self) -> str:
        """Name and settings, as files have it: equal keys mean equal sums."""
        settings = ", ".join(f"{k}={v}" for k, v in asdict(self).items())  # type: ignore[call-overload]
        return f"{self.name}({settings})" if settings else self.name


@dataclass
class Collected:
    """The sums of one statistic, and of how many positions they are.

    Attributes:
        statistic: what was summed.
        count: positions.
        sums: by name.
    """

    statistic: Statistic
    count: int = 0
    sums: dict[str, Tensor] | None = None

    def tasks(self, seen: Observation) -> list[Task]:
        """Adds `seen`, once the tasks have run."""
        missing = [need for need in self.statistic.needs if getattr(seen, need) is None]
        if missing:
            raise DataError(f"{self.statistic.name} needs {missing[0]}, which this pass has not")
        if self.sums is None:
            self.sums = self.statistic.sums(seen)
        self.count += len(seen.inputs)
        return self.statistic.tasks(self.sums, seen)

    def update(self, seen: Observation) -> Self:
        """Adds `seen` at once."""
        for task in self.tasks(seen):
            task()
        return self

    def merge(self, other: "Collected", weight: float = 1.0) -> None:
        """Adds `weight` times another's sums and positions."""
        if other.sums is None:
            return
        if self.sums is None:
            self.sums = {name: torch.zeros_like(t) for name, t in other.sums.items()}
        self.statistic.merge(self.sums, other.sums, weight)
        self.count += round(weight * other.count)


@dataclass(frozen=True)
class SecondMoment(Statistic):
    """`sum x x^T` over positions: the Hessian of a layer's squared error up to a factor.

    Sums: `moment` (in, in); its upper triangle is filled in by `LayerStats.second_moment`.
    """

    name = "second moment"

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        return {"moment": zero_sums(seen.inputs, seen.inputs.shape[1], seen.inputs.shape[1])}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        return _moment_tasks(sums["moment"], seen.inputs)


@dataclass(frozen=True)
class InputNorm(Statistic):
    """Sum and sum of squares of every input channel: means and norms, as Wanda and NoWag use them.

    Sums: `sum` (in,), `square` (in,).
    """

    name = "input norm"

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        width = seen.inputs.shape[1]
        return {"sum": zero_sums(seen.inputs, width), "square": zero_sums(seen.inputs, width)}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        def add() -> None:
            sums["sum"] += seen.inputs.sum(dim=0, dtype=SUMS)
            sums["square"] += seen.inputs.square().sum(dim=0, dtype=SUMS)

        return [add]


@dataclass(frozen=True)
class AbsMax(Statistic):
    """Least and greatest value of every input channel, for ranges of activation quantizers.

    Sums: `low` (in,), `high` (in,), fp32.
    """

    name = "extremes"

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        low = torch.full_like(seen.inputs[0], torch.inf)
        return {"low": low, "high": -low}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        def add() -> None:
            low, high = seen.inputs.aminmax(dim=0)
            torch.minimum(sums["low"], low, out=sums["low"])
            torch.maximum(sums["high"], high, out=sums["high"])

        return [add]

    def merge(self, sums: dict[str, Tensor], other: Mapping[str, Tensor], weight: float) -> None:
        torch.minimum(sums["low"], other["low"], out=sums["low"])
        torch.maximum(sums["high"], other["high"], out=sums["high"])


@dataclass(frozen=True)
class OutputMoment(Statistic):
    """Sum and second moment of the layer's outputs, for factorisations of what comes out.

    Sums: `sum` (out,), `moment` (out, out); its upper triangle is filled in by `LayerStats`.
    """

    name = "output moment"
    of_inputs = False
    needs = frozenset({"outputs"})

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        assert seen.outputs is not None
        width = seen.outputs.shape[1]
        return {
            "sum": zero_sums(seen.outputs, width),
            "moment": zero_sums(seen.outputs, width, width),
        }

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        assert seen.outputs is not None
        outputs = seen.outputs

        def add() -> None:
            sums["sum"] += outputs.sum(dim=0, dtype=SUMS)

        return [add, *_moment_tasks(sums["moment"], outputs)]


@dataclass(frozen=True)
class CrossMoment(Statistic):
    """`sum x_dense x^T`: what the dense model saw against what the compressed one sees.

    Sums: `cross` (in, in), rows of the dense model; beside `SecondMoment` it gives the least-squares
    target `W C H^-1` of a layer behind others that were compressed already.
    """

    name = "cross moment"
    needs = frozenset({"reference"})

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        return {"cross": zero_sums(seen.inputs, seen.inputs.shape[1], seen.inputs.shape[1])}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        assert seen.reference is not None
        return _product_tasks(sums["cross"], seen.reference, seen.inputs)


@dataclass(frozen=True)
class GradientMoment(Statistic):
    """Sum and sum of squares of the weight's gradients over sequences: Taylor scores, Fisher's diagonal.

    Sums: `gradient` (out, in), `square` (out, in). `count` counts positions, `sequences` sequences.
    """

    name = "gradient moment"
    of_inputs = False
    needs = frozenset({"gradients"})

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        assert seen.gradients is not None
        shape = seen.gradients.shape[1], seen.inputs.shape[1]
        zeros = {name: zero_sums(seen.inputs, *shape) for name in ("gradient", "square")}
        return zeros | {"sequences": zero_sums(seen.inputs, 1)}

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        assert seen.gradients is not None
        gradients = seen.gradients
        sums["sequences"] += 1

        def add(panel: slice) -> None:
            part = gradients[:, panel].T @ seen.inputs
            sums["gradient"][panel] += part
            sums["square"][panel] += part.to(SUMS).square_()

        return [lambda panel=panel: add(panel) for panel in _panels(gradients.shape[1])]  # type: ignore[misc]


@dataclass(frozen=True)
class KroneckerFactors(Statistic):
    """The two factors of the Fisher information of a layer, `G (x) A`, inputs and gradients apart.

    Sums: `inputs` (in, in) = sum a a^T, `gradients` (out, out) = sum g g^T over positions (K-FAC,
    Martens and Grosse, 2015, with activations and derivatives taken as independent).
    """

    name = "kronecker factors"
    of_inputs = False
    needs = frozenset({"gradients"})

    def sums(self, seen: Observation) -> dict[str, Tensor]:
        assert seen.gradients is not None
        width, height = seen.inputs.shape[1], seen.gradients.shape[1]
        return {
            "inputs": zero_sums(seen.inputs, width, width),
            "gradients": zero_sums(seen.inputs, height, height),
        }

    def tasks(self, sums: dict[str, Tensor], seen: Observation) -> list[Task]:
        assert seen.gradients is not None
        return [
            *_moment_tasks(sums["inputs"], seen.inputs),
            *_moment_tasks(sums["gradients"], seen.gradients),
        ]


def symmetric(moment: Tensor) -> Tensor:
    """The whole of a moment of which only the lower panels were summed."""
    lower = moment.tril()
    return lower + lower.tril(-1).T


def zero_sums(like: Tensor, *shape: int) -> Tensor:
    """Sums of nothing yet, where `like` is."""
    return torch.zeros(shape, dtype=SUMS, device=like.device)


def _panels(width: int) -> list[slice]:
    return [slice(start, min(start + PANEL, width)) for start in range(0, width, PANEL)]


def _moment_tasks(moment: Tensor, x: Tensor) -> list[Task]:
    """Adds `x^T x` (w, w) of x (n, w) to `moment`, the rows of each panel up to its last column."""

    def add(panel: slice) -> None:
        moment[panel, : panel.stop] += x[:, panel].T @ x[:, : panel.stop]

    return [lambda panel=panel: add(panel) for panel in _panels(x.shape[1])]  # type: ignore[misc]


def _product_tasks(product: Tensor, left: Tensor, right: Tensor) -> list[Task]:
    """Adds `left^T right` to `product`."""

    def add(panel: slice) -> None:
        product[panel] += left[:, panel].T @ right

    return [lambda panel=panel: add(panel) for panel in _panels(left.shape[1])]  # type: ignore[misc]


def settings_of(statistic: Statistic) -> dict[str, Any]:
    """Fields as JSON values."""
    return asdict(statistic)  # type: ignore[call-overload, no-any-return]
