"""`laconic compress`: a model on disk becomes a smaller one on disk."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.cli._common import (
    Bar,
    Data,
    Device,
    Json,
    bar,
    console,
    plural,
    print_json,
    quiet_libraries,
    size,
)
from laconic.cli._recipes import chain_of, mixed, pair, read_recipe
from laconic.errors import UsageError

if TYPE_CHECKING:
    from laconic.calibrate.options import RunOptions
    from laconic.report.compression import CompressionReport


class Inputs(StrEnum):
    """What layers are calibrated on."""

    compressed = "compressed"
    dense = "dense"


class Order(StrEnum):
    """Which layers of a block are compressed together."""

    auto = "auto"
    block = "block"
    layer = "layer"


def compress(
    model: Annotated[
        str, typer.Argument(help="Model directory, or package.module:factory[@path].")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="A method, see `laconic methods`; or several, applied in order, with their settings: "
            "'gptq:bits=3 eora:rank=16'."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated."
        ),
    ] = None,  # fmt: skip
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file with method and settings (or a list of methods), also, budget."
        ),
    ] = None,  # fmt: skip
    budget: Annotated[str | None, typer.Option(help="Upper limit: 4bit, 25%, 1.5GB.")] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            help="What each layer's format is chosen from for a --budget: auto, or methods with their settings, "
            "'gptq gptvq:dim=4'."
        ),
    ] = None,
    resident: Annotated[
        bool, typer.Option("--resident", help="The budget is of memory, not of the file.")
    ] = False,
    data: Annotated[
        Data | None, typer.Option(help="Calibration data, for methods that need it.")
    ] = None,  # fmt: skip
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Compress too: embeddings, rest (head and other layers outside the blocks) or a module path; may be repeated."
        ),
    ] = None,  # fmt: skip
    windows: Annotated[
        int, typer.Option(help="Calibration sequences that methods are fitted to.", min=1)
    ] = 128,
    inputs: Annotated[
        Inputs,
        typer.Option(
            help="Calibrate layers on what comes through the compressed blocks, or on the dense model's inputs."
        ),
    ] = Inputs.compressed,
    order: Annotated[
        Order,
        typer.Option(
            help="Compress a block's layers together, or those with one input at a time; auto: the latter where memory allows."
        ),
    ] = Order.auto,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="Folder of statistics to use again, and to keep them in; with --inputs dense."
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what a --budget measures; the next one of the same model, data and methods takes it from there."
        ),
    ] = None,
    device: Device = "cpu",
    ray: Annotated[
        int | None, typer.Option(help="Farm layers out to so many Ray workers.", min=1)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --out if it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a model smaller and write it to a directory that transformers opens.

    Example: laconic compress my-model --method rtn --set bits=4 --out my-model-4bit
    """
    settings = dict(pair(text) for text in set_ or [])
    plan = read_recipe(recipe) if recipe is not None else {}
    budget = budget or plan.get("budget")
    if resident and not budget:
        raise UsageError("--resident says what a --budget is of; give one")
    if formats is not None and (method or plan or settings or not budget):
        raise UsageError(
            "--formats is for a --budget to choose from, in place of a method or a recipe"
        )
    chain = mixed(formats, resident) if formats else chain_of(plan, method, settings, bool(budget))
    budget = f"{budget} resident" if resident else budget
    from laconic.registry import find

    entries = [find(str(link["method"])) for link in chain]
    quiet_libraries()
    from laconic.calibrate.options import RunOptions
    from laconic.compression import compress as run

    methods = [e.load().from_settings(li.get("settings") or {}) for e, li in zip(entries, chain)]
    options = RunOptions(inputs.value, order.value, device)  # type: ignore[arg-type]
    with _farmed(options, ray) as options:
        result = run(
            model, methods or None, data, out=out, budget=budget, also=also or plan.get("also", ()),
            overwrite=overwrite, windows=windows, options=options,
            statistics=statistics, measured=measured, progress=Bar(),
        )  # fmt: skip
    if json:
        print_json(result.report.to_json())
    else:
        _show(result.report)


@contextmanager
def _farmed(options: "RunOptions", workers: int | None) -> "Iterator[RunOptions]":
    """`options` with a Ray farm of so many workers, if any are asked for."""
    if workers is None:
        yield options
        return
    from laconic.calibrate.ray_farm import RayFarm

    farm = RayFarm(workers)
    try:
        yield replace(options, farm=farm)
    finally:
        farm.close()


def _show(report: "CompressionReport") -> None:
    from rich.table import Table

    console.print(
        f"[bold]{report.model}[/bold] → [bold]{report.out}[/bold]   "
        + _methods(report.method, report.settings)
    )
    console.print(
        f"  {size(report.dense_bytes)} → {size(report.stored_bytes)}   "
        f"{bar(report.kept)} {100 * report.kept:.1f}% kept on disk"
    )
    console.print(
        f"  {report.bits_per_weight:.2f} bits a weight stored, {report.resident_bits_per_weight:.2f} "
        f"in memory, over {plural(len(report.layers), 'layer')}"
    )
    table = Table(box=None, padding=(0, 2), header_style="dim", title_justify="left")
    for heading, justify in (
        ("format", "left"),
        ("layers", "right"),
        ("bits", "right"),
        ("error", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, rows in _by_format(report.layers).items():
        weights = sum(row["weights"] for row in rows)
        bits = sum(row["bits_per_weight"] * row["weights"] for row in rows) / max(1, weights)
        error = sum(row["error"] * row["weights"] for row in rows) / max(1, weights)
        table.add_row(name, str(len(rows)), f"{bits:.2f}", f"{error:.2e}")
    console.print(table)
    worst = max(report.layers, key=lambda row: row["error"])
    if worst["error"] > 0:
        console.print(f"  worst: {worst['name']} lost {100 * worst['error']:.3g}% of its energy")
    console.print(f"  {report.seconds:.1f} s, peak memory {size(report.peak_rss_bytes)}")
    for note in report.notes:
        console.print(f"  [dim]note:[/dim] {note}")
    for warning in report.warnings:
        console.print(f"  [yellow]warning:[/yellow] {warning}")
    console.print(
        f"  next: laconic evaluate {report.out} --against {report.model} --data DATA",
        soft_wrap=True,
    )


def _methods(name: str, settings: dict[str, Any]) -> str:
    """The method and its settings, or each of a chain."""
    chained = all(isinstance(value, dict) for value in settings.values()) and settings
    links = settings if chained else {name: settings}
    spelt = [
        " ".join([link, *(f"{key}={value}" for key, value in own.items())])
        for link, own in links.items()
    ]
    return ", then ".join(spelt)


def _by_format(layers: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Layers of each format, however many codebooks (` x 32`) each of them has."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        groups.setdefault(re.sub(r" x \d+", "", layer["format"]), []).append(layer)
    return dict(sorted(groups.items()))
