"""What a count says: multiply-accumulates and parameters, module by module."""

from dataclasses import dataclass, field
from typing import Any

from laconic.measure.operations import Operation


@dataclass(frozen=True)
class ModuleCount:
    """What a module itself holds and computes, without the modules in it.

    Attributes:
        kind: its class.
        params: its parameters; of a compressed weight the numbers that are kept.
        dense_params: the same before compression.
        macs: multiply-accumulates, with the weights that are kept.
        dense_macs: the same with dense weights.
        operations: the multiplications, one for each.
    """

    kind: str
    params: int = 0
    dense_params: int = 0
    macs: int = 0
    dense_macs: int = 0
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Counts:
    """What a model holds and computes for one input.

    Attributes:
        by_module: by path; modules that neither hold nor compute anything are left out.
        uncounted: by path why a module's work, or some of it, is missing here.
    """

    by_module: dict[str, ModuleCount]
    uncounted: dict[str, str] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """Parameters, shared ones once; of compressed weights the numbers that are kept."""
        return sum(module.params for module in self.by_module.values())

    @property
    def dense_params(self) -> int:
        """The same before compression."""
        return sum(module.dense_params for module in self.by_module.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass, with the weights that are kept."""
        return sum(module.macs for module in self.by_module.values())

    @property
    def dense_macs(self) -> int:
        """The same with dense weights."""
        return sum(module.dense_macs for module in self.by_module.values())

    @property
    def flops(self) -> int:
        """Floating point operations: two for each multiply-accumulate."""
        return 2 * self.macs

    def below(self, path: str) -> "Counts":
        """Those of module `path` and everything in it."""

        def inside(name: str) -> bool:
            return not path or name == path or name.startswith(f"{path}.")

        return Counts(
            {name: count for name, count in self.by_module.items() if inside(name)},
            {name: why for name, why in self.uncounted.items() if inside(name)},
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values: totals, and each module's."""
        names = ("params", "dense_params", "macs", "dense_macs")
        modules = {
            path: {"kind": count.kind} | {name: getattr(count, name) for name in names}
            for path, count in self.by_module.items()
        }
        totals = {name: getattr(self, name) for name in names}
        return {**totals, "by_module": modules, "uncounted": self.uncounted}


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, by where they are.

    Attributes:
        blocks: by path of the block.
        rest: embeddings, heads, final norms.
    """

    blocks: dict[str, int]
    rest: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.blocks.values()) + self.rest
