"""`compress`: a model, methods, and where the result goes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from laconic.allocate.budget import Budget, Unit
from laconic.budgeting import default_method
from laconic.calibrate.calibration import FITTED
from laconic.calibrate.options import RunOptions
from laconic.errors import BudgetError, UsageError
from laconic.files import save_json
from laconic.hf import prepare_for_saving, quantization_config
from laconic.job import Job, TooLarge
from laconic.method import Method
from laconic.models.open import open_source
from laconic.models.source import ModelSource
from laconic.progress import SILENT, Progress
from laconic.report.compression import CompressionReport
from laconic.report.points import REPORT_FILE

RETRIES = 4  # how often a byte budget that the finished file misses is tightened


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
    methods: Method | Sequence[Method] | None = None,
    data: Any = None,
    *,
    out: str | Path | None = None,
    budget: str | Budget | None = None,
    also: Sequence[str] = (),
    overwrite: bool = False,
    windows: int = FITTED,
    options: RunOptions | None = None,
    statistics: str | Path | None = None,
    measured: str | Path | None = None,
    progress: Progress = SILENT,
) -> Compression:
    """Makes a model smaller.

    Args:
        model: a directory, `package.module:factory[@path]`, a module or a source. A module without
            `out` is changed in place.
        methods: one, or a chain that is applied block by block in order. A method that plans for the
            whole model comes first. With a budget none need be given: `ecgptq` for bytes in files,
            `gptq` for bytes in memory.
        data: calibration data, for methods that need it; what `read_calibration` takes.
        out: directory to write; streams from disk to disk with one block in memory. A run that was
            killed goes on behind its last finished block when it is started again.
        budget: upper limit; the method's options are spread over the layers to meet it. `3.2bit`,
            `25%` or `1.5GB` are of files, or in memory with `resident` behind them; `0.7x params` and
            `0.6x flops` are for methods that leave weights out.
        also: layers outside the blocks to compress too: `"embeddings"`, `"rest"` or module paths.
        overwrite: replace an existing `out`, once the new one is complete.
        windows: sequences that methods are fitted to; 32 more measure the layers' errors.
        options: how the run goes about it: device, order, farm.
        statistics: folder of statistics of the dense model's inputs, used instead of collecting them
            and filled where they are not there; needs `RunOptions(inputs="dense")`.
        measured: folder that keeps what a budget of bytes measures of the layers; the next budget of the
            same model, data and methods takes it from there.
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
    limit = Budget.parse(budget) if isinstance(budget, str) else budget
    why = ""
    if methods is None:
        if limit is None:
            raise UsageError("give a method, or a budget to choose one for")
        methods, why = default_method(limit, data is not None)
    chain = [methods] if isinstance(methods, Method) else list(methods)
    job = Job(open_source(model), chain, also, options or RunOptions(), progress)
    if out is None and not isinstance(model, nn.Module):
        raise UsageError("a model on disk needs out= (--out), the directory to write")
    started = time.perf_counter()
    if why:
        job.notes.append(f"chosen: {why}")
    job.read_data(data, windows, counted=limit is not None and limit.unit is Unit.FLOPS)
    if statistics is not None:
        job.use_statistics(Path(statistics))
    if measured is not None and limit is None:
        raise UsageError("measured= (--measured) keeps what a budget measures: give a budget")
    tables = None if measured is None else job.tables(Path(measured))
    plan = job.plan(limit, out is not None, tables)
    if plan.edits:
        job.edit(plan.edits, in_place=out is None)
    for _ in range(RETRIES):
        try:
            layers, stored = job.run(plan, None if out is None else Path(out), overwrite)
            break
        except TooLarge as miss:
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
