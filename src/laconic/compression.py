"""`compress`: a model, methods, and where the result goes."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash
from torch import nn

from laconic.allocate.budget import Budget
from laconic.calibrate.calibration import FITTED, Calibration, read_calibration
from laconic.calibrate.inputs import Subject
from laconic.calibrate.runner import LayerReport, RunOptions, choose_extra, run_layers
from laconic.errors import BudgetError, DataError, UsageError
from laconic.hf import prepare_for_saving, quantization_config
from laconic.measure.resources import peak_rss_bytes
from laconic.method import BlockMethod, LayerMethod, Method, ModelMethod, Needs
from laconic.models.directory import DirectorySink
from laconic.models.edited import EditedSource
from laconic.models.edits import apply_edits
from laconic.models.layout import Layer
from laconic.models.memory import MemorySource
from laconic.models.open import open_source
from laconic.models.sink import MemorySink
from laconic.models.source import ModelSource
from laconic.planning import Plan, plan_budget, planned_steps
from laconic.progress import SILENT, Progress
from laconic.registry import name_of
from laconic.report.points import REPORT_FILE, save_json

PASSED_OVER = 0.005  # share of the blocks' bytes from which an untouched tensor is reported
RETRIES = 4  # how often a byte budget that the finished file misses is tightened


@dataclass
class CompressionReport:
    """What `compress` did; a point for `laconic report`, JSON on disk.

    Attributes:
        method: name of the method.
        settings: its hyper-parameters.
        model: what was compressed.
        out: where it went; None in memory.
        stored_bytes: of the weight files; of the compressed values in memory.
        dense_bytes: of the uncompressed model.
        kept: stored / dense.
        bits_per_weight: stored, over the touched tensors.
        resident_bits_per_weight: in memory, over the touched tensors.
        seconds: wall clock.
        peak_rss_bytes: VmHWM of the process.
        layers: one report each.
        warnings: what the user should know.
        budget: as given, if it was.
    """

    method: str
    settings: dict[str, Any]
    model: str
    out: str | None
    stored_bytes: int
    dense_bytes: int
    kept: float
    bits_per_weight: float
    resident_bits_per_weight: float
    seconds: float
    peak_rss_bytes: int
    layers: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    budget: str | None = None
    kind: str = "compression"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass
class Compression:
    """A compressed model and what is known of it.

    Attributes:
        report: what was done.
        model: the module, where it was compressed in memory.
    """

    report: CompressionReport
    model: nn.Module | None = None


def compress(
    model: "str | Path | nn.Module | ModelSource",
    methods: Method | Sequence[Method],
    data: Any = None,
    *,
    out: str | Path | None = None,
    budget: str | Budget | None = None,
    also: Sequence[str] = (),
    overwrite: bool = False,
    windows: int = FITTED,
    options: RunOptions | None = None,
    progress: Progress = SILENT,
) -> Compression:
    """Makes a model smaller.

    Args:
        model: a directory, `package.module:factory[@path]`, a module or a source. A module without
            `out` is changed in place.
        methods: one, or a chain that is applied block by block in order. A method that plans for the
            whole model comes first.
        data: calibration data, for methods that need it; what `read_calibration` takes.
        out: directory to write; streams from disk to disk with one block in memory. A run that was
            killed goes on behind its last finished block when it is started again.
        budget: upper limit; the method's options are spread over the layers to meet it.
        also: layers outside the blocks to compress too: `"embeddings"`, `"rest"` or module paths.
        overwrite: replace an existing `out`, once the new one is complete.
        windows: sequences that methods are fitted to; 32 more measure the layers' errors.
        options: how the run goes about it: device, order, farm.
        progress: follows the blocks.

    Raises:
        LaconicError: see its children; nothing is half-written.

    Example:
        >>> import laconic, torch
        >>> from laconic.quantize.rtn import RTN
        >>> result = laconic.compress(torch.nn.Sequential(torch.nn.Linear(64, 64)), RTN(bits=8))
        >>> result.report.layers[0]["format"]
        'int8 row'
    """
    chain = [methods] if isinstance(methods, Method) else list(methods)
    job = Job(open_source(model), chain, also, options or RunOptions(), progress)
    if out is None and not isinstance(model, nn.Module):
        raise UsageError("a model on disk needs out= (--out), the directory to write")
    started = time.perf_counter()
    job.read_data(data, windows)
    plan = job.plan(Budget.parse(budget) if isinstance(budget, str) else budget, out is not None)
    if plan.edits:
        job.edit(plan.edits, in_place=out is None)
    for _ in range(RETRIES):
        try:
            layers, stored = job.run(plan, None if out is None else Path(out), overwrite)
            break
        except _TooLarge as miss:
            plan = plan.tightened(miss.stored)
    else:
        raise BudgetError(f"the budget {budget} was missed {RETRIES} times; give a larger one")
    report = job.report(plan, layers, stored, time.perf_counter() - started, out, budget)
    if out is not None:
        save_json(Path(out) / REPORT_FILE, report.to_json())
    if out is None and isinstance(model, nn.Module):
        if hasattr(model, "save_pretrained"):
            modules = sorted({layer.module for layer in job.layers})
            prepare_for_saving(model, quantization_config(modules, plan.recipe(), plan.edits))
        return Compression(report, model)
    return Compression(report)


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
    """

    source: ModelSource
    chain: list[Method]
    also: Sequence[str]
    options: RunOptions
    progress: Progress
    calibration: Calibration | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = (LayerMethod, BlockMethod)
        bad = [m for m in self.chain[1:] if not isinstance(m, kinds)]
        if not self.chain or bad or not isinstance(self.chain[0], (*kinds, ModelMethod)):
            found = [type(m).__name__ for m in self.chain] or "none"
            raise UsageError(
                f"expected a method, or a chain of layer and block methods: found {found}"
            )

    @cached_property
    def layers(self) -> list[Layer]:
        """Those that the chain may touch."""
        inside = [layer for block in self.source.blocks for layer in block.layers]
        return inside + choose_extra(self.source, self.also)[0]

    def read_data(self, data: Any, windows: int) -> None:
        """Reads calibration sequences if a method needs them; says so if they are not used."""
        if isinstance(data, str | Path) and not Path(data).exists():
            raise DataError(f"{data}: no such file or folder")
        if data is None:
            return
        if all(method.needs is Needs.NOTHING for method in self.chain):
            name = name_of(type(self.chain[0]))
            what = data if isinstance(data, str | Path) else "the data"
            self.warnings.append(f"{name} needs no data: {what} was not used")
            return
        subject = Subject(self.source.skeleton, self.source.folder)
        self.calibration = read_calibration(data, subject, fitted=windows)

    def plan(self, budget: Budget | None, coded: bool) -> Plan:
        """What is to be done with each layer."""
        first = self.chain[0]
        if isinstance(first, ModelMethod):
            if budget is not None:
                raise UsageError(f"{name_of(type(first))} has a budget among its settings")
            found = first.plan(
                self.source, self.calibration, device=self.options.device, progress=self.progress
            )
            self.warnings += found.notes
            steps = planned_steps(found.methods)
            planner = {"method": name_of(type(first)), "settings": first.settings()}
            rest = Plan.of(self.chain[1:]).steps  # type: ignore[arg-type]
            return Plan([*steps, *rest], edits=found.edits, planner=planner)
        if budget is None:
            return Plan.of(self.chain)  # type: ignore[arg-type]
        members = tuple(m for m in self.chain if isinstance(m, LayerMethod))
        if len(members) < len(self.chain):
            raise BudgetError("a budget is spread over methods that see layers; give none")
        return plan_budget(
            self.source, members, budget, calibration=self.calibration, also=self.also,
            coded=coded, options=self.options, progress=self.progress,
        )  # fmt: skip

    def edit(self, edits: Sequence[dict[str, Any]], *, in_place: bool) -> None:
        """Changes the structure: of the model in memory, or of what is read from disk."""
        if in_place:
            apply_edits(self.source.skeleton, edits)
            self.source = MemorySource(self.source.skeleton, self.source.name)
        else:
            self.source = EditedSource(self.source, edits)
        self.__dict__.pop("layers", None)

    def run(self, plan: Plan, out: Path | None, overwrite: bool) -> tuple[list[LayerReport], int]:
        """Runs the plan; returns the layers' reports and the stored bytes.

        Raises:
            _TooLarge: the bytes are over the plan's limit; what was made is gone.
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
            if plan.limit is not None and counted > plan.limit:
                raise _TooLarge(counted)
        return layers, stored

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
        noted = [layer for layer in layers if layer.notes]
        if noted:
            warnings.append(
                f"{len(noted)} of {len(layers)} layers have notes, such as {noted[0].name}: "
                f"{noted[0].notes[0]}"
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


class _TooLarge(Exception):
    """What a plan made is over its limit."""

    def __init__(self, stored: int) -> None:
        super().__init__(stored)
        self.stored = stored
