"""A model on its way through a chain of methods, and the report of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import xxhash

from laconic.allocate.budget import Budget
from laconic.budgeting import plan_budget
from laconic.calibrate.calibration import Calibration, read_calibration
from laconic.calibrate.extras import choose_extra
from laconic.calibrate.inputs import Subject
from laconic.calibrate.library import StatisticsLibrary
from laconic.calibrate.options import RunOptions
from laconic.calibrate.reports import LayerReport, common_notes
from laconic.calibrate.runner import run_layers
from laconic.errors import BudgetError, DataError, UsageError
from laconic.hf import quantization_config
from laconic.measure.resources import peak_rss_bytes
from laconic.measured import MeasuredTables
from laconic.method import BlockMethod, LayerMethod, Method, ModelMethod, Needs
from laconic.models.directory import DirectorySink
from laconic.models.edited import EditedSource
from laconic.models.edits import apply_edits
from laconic.models.layout import Layer
from laconic.models.memory import MemorySource
from laconic.models.sink import MemorySink
from laconic.models.source import ModelSource
from laconic.planning import Plan, planned_steps
from laconic.progress import Progress
from laconic.registry import name_of
from laconic.report.compression import CompressionReport

PASSED_OVER = 0.005  # share of the blocks' bytes from which an untouched tensor is reported


@dataclass
class Job:
    """A model on its way through a chain of methods.

    Attributes:
        source: the model.
        chain: methods, in order.
        also: layers outside the blocks to compress too.
        options: of the runner.
        progress: follows it.
        calibration: sequences, where a method wants any.
        warnings: for the report, so far.
        notes: for the report, so far.
    """

    source: ModelSource
    chain: list[Method]
    also: Sequence[str]
    options: RunOptions
    progress: Progress
    calibration: Calibration | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = (LayerMethod, BlockMethod)
        bad = [m for m in self.chain[1:] if not isinstance(m, kinds)]
        if not self.chain or bad or not isinstance(self.chain[0], (*kinds, ModelMethod)):
            found = [type(m).__name__ for m in self.chain] or "none"
            raise UsageError(
                f"expected a method, or a chain of layer and block methods: found {found}"
            )

    @property
    def layers(self) -> list[Layer]:
        """Those that the chain may touch."""
        inside = [layer for block in self.source.blocks for layer in block.layers]
        return inside + choose_extra(self.source, self.also)[0]

    def read_data(self, data: Any, windows: int, *, counted: bool = False) -> None:
        """Reads calibration sequences if a method needs them; says so if they are not used.

        `counted`: whether a budget needs them too, to count operations on.
        """
        if isinstance(data, str | Path) and not Path(data).exists():
            raise DataError(f"{data}: no such file or folder")
        if data is None:
            return
        if not counted and all(method.needs is Needs.NOTHING for method in self.chain):
            name = name_of(type(self.chain[0]))
            what = data if isinstance(data, str | Path) else "the data"
            self.warnings.append(f"{name} needs no data: {what} was not used")
            return
        subject = Subject(self.source.skeleton, self.source.folder)
        self.calibration = read_calibration(data, subject, fitted=windows)

    def use_statistics(self, folder: Path) -> None:
        """Reads statistics from `folder`, and keeps there what is missing."""
        source = self.source.fingerprint()
        if source is None or self.calibration is None:
            raise UsageError("statistics are kept of a model on disk and of calibration data")
        key = xxhash.xxh3_64_hexdigest(f"{source} {self.calibration.fingerprint}".encode())
        self.options = replace(self.options, library=StatisticsLibrary(folder, key))

    def tables(self, folder: Path) -> MeasuredTables:
        """The tables that `folder` keeps of this model, data and layers."""
        source = self.source.fingerprint()
        if source is None:
            raise UsageError("tables are kept of a model on disk, not of one in memory")
        data = None if self.calibration is None else self.calibration.fingerprint
        return MeasuredTables(folder, [source, data, list(self.also)])

    def plan(
        self, budget: Budget | None, coded: bool, tables: MeasuredTables | None = None
    ) -> Plan:
        """What is to be done with each layer."""
        first = self.chain[0]
        if isinstance(first, ModelMethod):
            if budget is not None:
                raise UsageError(f"{name_of(type(first))} has a budget among its settings")
            found = first.plan(
                self.source, self.calibration, device=self.options.device, progress=self.progress
            )
            self.notes += found.notes
            if found.also:
                self.also = tuple(dict.fromkeys([*self.also, *found.also]))
            steps = planned_steps(found.methods)
            planner = {"method": name_of(type(first)), "settings": first.settings()}
            rest = Plan.of(self.chain[1:]).steps  # type: ignore[arg-type]
            return Plan([*steps, *rest], edits=found.edits, planner=planner)
        if budget is None:
            return Plan.of(self.chain)  # type: ignore[arg-type]
        members = tuple(takewhile(lambda m: isinstance(m, LayerMethod), self.chain))
        rest = self.chain[len(members) :]
        if not (members and all(isinstance(m, BlockMethod) for m in rest)):
            raise BudgetError(
                "a budget is spread over methods that see layers: let them come first in the chain, or give "
                "no budget"
            )
        plan = plan_budget(
            self.source, members, budget, calibration=self.calibration, also=self.also,
            coded=coded, options=self.options, progress=self.progress, tables=tables,
        )  # fmt: skip
        return replace(plan, steps=[*plan.steps, *rest])

    def edit(self, edits: Sequence[dict[str, Any]], *, in_place: bool) -> None:
        """Changes the structure: of the model in memory, or of what is read from disk."""
        if in_place:
            apply_edits(self.source.skeleton, edits)
            self.source = MemorySource(self.source.skeleton, self.source.name)
        else:
            self.source = EditedSource(self.source, edits)

    def run(self, plan: Plan, out: Path | None, overwrite: bool) -> tuple[list[LayerReport], int]:
        """Runs the plan; returns the layers' reports and the stored bytes.

        Raises:
            TooLarge: the bytes are over the plan's limit; what was made is gone.
        """

        def save_config(folder: Path, modules: list[str]) -> None:
            config = quantization_config(modules, plan.recipe(), plan.edits)
            self.source.save_config(folder, config)

        sink: MemorySink | DirectorySink
        if out is None:
            sink = MemorySink(self.source.skeleton)
        else:
            name = self.name(plan)
            sink = DirectorySink(out, save_config, overwrite=overwrite, job=name)
        with sink:
            layers = run_layers(
                self.source, sink, plan.steps, calibration=self.calibration, also=self.also,
                options=self.options, progress=self.progress,
            )  # fmt: skip
            of_layers = sum(round(layer.weights * layer.bits_per_weight / 8) for layer in layers)
            if isinstance(sink, DirectorySink):
                stored = sink.finish()
            else:
                stored = of_layers + self._untouched_bytes()
            counted = of_layers if plan.of_layers else stored
            if plan.resident:
                counted = self._resident_bytes(layers, plan)
            if plan.limit is not None and counted > plan.limit:
                raise TooLarge(counted)
        return layers, stored

    def _resident_bytes(self, layers: list[LayerReport], plan: Plan) -> int:
        own = sum(round(la.weights * la.resident_bits_per_weight / 8) for la in layers)
        return own if plan.of_layers else own + self._untouched_bytes()

    def name(self, plan: Plan) -> str | None:
        """Of everything that the result depends on, so that a killed run is resumed by its like."""
        source = self.source.fingerprint()
        if source is None:
            return None
        data = None if self.calibration is None else self.calibration.fingerprint
        parts = [
            version("laconic"), source, plan.recipe(), plan.edits, data, list(self.also),
            self.options.inputs, self.options.order,
        ]  # fmt: skip
        return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())

    def _untouched_bytes(self) -> int:
        touched = {layer.parameter for layer in self.layers}
        return sum(size for name, size in self.source.sizes().items() if name not in touched)

    def report(
        self, plan: Plan, layers: list[LayerReport], stored: int, seconds: float,
        out: str | Path | None, budget: str | Budget | None,
    ) -> CompressionReport:  # fmt: skip
        """What was done, as `compress` tells it."""
        weights, dense = max(1, sum(layer.weights for layer in layers)), self.source.dense_bytes
        resident = sum(la.resident_bits_per_weight * la.weights for la in layers)
        return CompressionReport(
            method=" + ".join(name_of(type(method)) for method in self.chain),
            settings=_settings(self.chain),
            model=self.source.name,
            out=None if out is None else str(out),
            stored_bytes=stored,
            dense_bytes=dense,
            kept=stored / max(1, dense),
            bits_per_weight=sum(la.bits_per_weight * la.weights for la in layers) / weights,
            resident_bits_per_weight=resident / weights,
            seconds=seconds,
            peak_rss_bytes=peak_rss_bytes(),
            layers=[asdict(layer) for layer in layers],
            warnings=[*self.warnings, *plan.warnings, *self._warnings(layers)],
            notes=[*self.notes, *plan.notes, *common_notes(layers)],
            budget=None if budget is None else str(budget),
        )

    def _warnings(self, layers: list[LayerReport]) -> list[str]:
        warnings = []
        passed = self._passed_over()
        if passed:
            warnings.append(
                f"{len(passed)} large matrices inside the blocks belong to no layer that laconic knows "
                f"and stay as they are, such as {passed[0]}"
            )
        poor = [layer.name for layer in layers if layer.error > 0.5]
        if poor:
            warnings.append(
                f"{len(poor)} of {len(layers)} layers lost more than half of their energy, such as "
                f"{poor[0]}: use more bits, smaller groups or range=mse"
            )
        return warnings

    def _passed_over(self) -> list[str]:
        """Matrices in the blocks that nothing touched, where they are large enough to matter."""
        touched = {layer.parameter for layer in self.layers}
        sizes, state = self.source.sizes(), self.source.skeleton.state_dict()
        inside = [n for block in self.source.blocks for n in self.source.tensors_below(block.name)]
        least = PASSED_OVER * sum(sizes[name] for name in inside)
        matrices = [name for name in inside if name in state and state[name].ndim > 1]
        return [name for name in matrices if name not in touched and sizes[name] > least]


def _settings(chain: Sequence[Method]) -> dict[str, Any]:
    """Of the only method; of several by their names."""
    if len(chain) == 1:
        return chain[0].settings()
    return {name_of(type(method)): method.settings() for method in chain}


class TooLarge(Exception):
    """What a plan made is over its limit."""

    def __init__(self, stored: int) -> None:
        super().__init__(stored)
        self.stored = stored
