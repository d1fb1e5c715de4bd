"""`compress`: a model, methods, and where the result goes."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from laconic.allocate.budget import Budget
from laconic.calibrate.runner import LayerReport, run_layers
from laconic.errors import BudgetError, DataError, UsageError
from laconic.hf import prepare_for_saving, quantization_config
from laconic.measure.resources import peak_rss_bytes
from laconic.method import LayerMethod, Method, Needs
from laconic.models.open import open_source
from laconic.models.sink import DirectorySink, MemorySink
from laconic.models.source import ModelSource
from laconic.planning import Plan, plan_budget
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
    progress: Progress = SILENT,
) -> Compression:
    """Makes a model smaller.

    Args:
        model: a directory, `package.module:factory[@path]`, a module or a source. A module without
            `out` is changed in place.
        methods: one, or several to be applied in order.
        data: calibration data (a text file or folder of `*.txt`) for methods that need it.
        out: directory to write; streams from disk to disk with one block in memory.
        budget: upper limit; the method's options are spread over the layers to meet it.
        also: layers outside the blocks to compress too: `"embeddings"`, `"rest"` or module paths.
        overwrite: replace an existing `out`, once the new one is complete.
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
    method = _single_layer_method(methods)
    source = open_source(model)
    if out is None and not isinstance(model, nn.Module):
        raise UsageError("a model on disk needs out= (--out), the directory to write")
    if isinstance(data, str | Path) and not Path(data).exists():
        raise DataError(f"{data}: no such file or folder")
    started = time.perf_counter()
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    plan = Plan(method)
    if parsed is not None:
        plan = plan_budget(
            source, method, parsed, also=also, coded=out is not None, progress=progress
        )
    for _ in range(RETRIES):
        try:
            layers, stored = _run(source, plan, out, also, overwrite, progress)
            break
        except _TooLarge as miss:
            plan = plan.tightened(miss.stored)
    else:
        raise BudgetError(f"the budget {budget} was missed {RETRIES} times; give a larger one")
    if data is not None and method.needs is Needs.NOTHING:
        plan.warnings.append(f"{name_of(type(method))} needs no data: {data} was not used")
    report = _report(source, method, plan, layers, stored, started, out, budget)
    if out is not None:
        save_json(Path(out) / REPORT_FILE, report.to_json())
    if out is None and isinstance(model, nn.Module):
        modules = sorted({layer.module for layer in plan.seen})
        if hasattr(model, "save_pretrained"):
            prepare_for_saving(model, quantization_config(modules, plan.recipe()))
        return Compression(report, model)
    return Compression(report)


def _single_layer_method(methods: Method | Sequence[Method]) -> LayerMethod:
    chain = [methods] if isinstance(methods, Method) else list(methods)
    if len(chain) != 1 or not isinstance(chain[0], LayerMethod):
        raise UsageError(
            f"expected one layer method, found {[type(m).__name__ for m in chain] or 'none'}"
        )
    return chain[0]


def _run(
    source: ModelSource, plan: Plan, out: str | Path | None, also: Sequence[str],
    overwrite: bool, progress: Progress,
) -> tuple[list[LayerReport], int]:  # fmt: skip
    """Runs the plan; returns the layers' reports and the stored bytes.

    Raises:
        _TooLarge: the bytes are over the plan's limit; what was made is gone.
    """

    def save_config(folder: Path, modules: list[str]) -> None:
        source.save_config(folder, quantization_config(modules, plan.recipe()))

    sink: MemorySink | DirectorySink
    if out is None:
        sink = MemorySink(source.skeleton)
    else:
        sink = DirectorySink(Path(out), save_config, overwrite=overwrite)
    with sink:
        layers = run_layers(source, sink, plan, also=also, progress=progress)
        of_layers = sum(round(layer.weights * layer.bits_per_weight / 8) for layer in layers)
        if isinstance(sink, DirectorySink):
            stored = sink.finish()
        else:
            stored = of_layers + _untouched_bytes(source, plan)
        counted = of_layers if plan.of_layers else stored
        if plan.limit is not None and counted > plan.limit:
            raise _TooLarge(counted)
    return layers, stored


class _TooLarge(Exception):
    """What a plan made is over its limit."""

    def __init__(self, stored: int) -> None:
        super().__init__(stored)
        self.stored = stored


def _passed_over(source: ModelSource, plan: Plan) -> list[str]:
    """Matrices in the blocks that nothing touched, where they are large enough to matter."""
    touched = {layer.parameter for layer in plan.seen}
    sizes, state = source.sizes(), source.skeleton.state_dict()
    inside = [n for block in source.blocks for n in source.tensors_below(block.name)]
    least = PASSED_OVER * sum(sizes[name] for name in inside)
    matrices = [name for name in inside if name in state and state[name].ndim > 1]
    return [name for name in matrices if name not in touched and sizes[name] > least]


def _untouched_bytes(source: ModelSource, plan: Plan) -> int:
    touched = {layer.parameter for layer in plan.seen}
    return sum(size for name, size in source.sizes().items() if name not in touched)


def _report(
    source: ModelSource, method: LayerMethod, plan: Plan, layers: list[LayerReport], stored: int,
    started: float, out: str | Path | None, budget: str | Budget | None,
) -> CompressionReport:  # fmt: skip
    weights = max(1, sum(layer.weights for layer in layers))
    dense = source.dense_bytes
    return CompressionReport(
        method=name_of(type(method)),
        settings=method.settings(),
        model=source.name,
        out=None if out is None else str(out),
        stored_bytes=stored,
        dense_bytes=dense,
        kept=stored / max(1, dense),
        bits_per_weight=sum(la.bits_per_weight * la.weights for la in layers) / weights,
        resident_bits_per_weight=sum(la.resident_bits_per_weight * la.weights for la in layers)
        / weights,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        layers=[_layer_json(layer) for layer in layers],
        warnings=_warnings(source, layers, plan),
        budget=None if budget is None else str(budget),
    )


def _layer_json(layer: LayerReport) -> dict[str, Any]:
    return asdict(layer)


def _warnings(source: ModelSource, layers: list[LayerReport], plan: Plan) -> list[str]:
    warnings = list(plan.warnings)
    passed = _passed_over(source, plan)
    if passed:
        warnings.append(
            f"{len(passed)} large matrices inside the blocks belong to no layer that laconic knows and "
            f"stay as they are, such as {passed[0]}"
        )
    poor = [layer.name for layer in layers if layer.error > 0.5]
    if poor:
        warnings.append(
            f"{len(poor)} of {len(layers)} layers lost more than half of their energy, such as "
            f"{poor[0]}: use more bits, smaller groups or range=mse"
        )
    return warnings
