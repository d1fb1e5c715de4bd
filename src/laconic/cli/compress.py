"""`laconic compress`: a model on disk becomes a smaller one on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.cli._common import (
    Bar,
    Data,
    Json,
    bar,
    console,
    plural,
    print_json,
    quiet_libraries,
    size,
)
from laconic.errors import UsageError

if TYPE_CHECKING:
    from laconic.compression import CompressionReport

DEFAULT_METHOD = "rtn"


def compress(
    model: Annotated[
        str, typer.Argument(help="Model directory, or package.module:factory[@path].")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    method: Annotated[
        str | None, typer.Option(help="Name of a method; see `laconic methods`.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated."
        ),
    ] = None,  # fmt: skip
    recipe: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with method, settings, also, budget.")
    ] = None,  # fmt: skip
    budget: Annotated[str | None, typer.Option(help="Upper limit: 4bit, 25%, 1.5GB.")] = None,
    data: Annotated[
        Data | None, typer.Option(help="Calibration data, for methods that need it.")
    ] = None,  # fmt: skip
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Compress too: embeddings, rest (head and other layers outside the blocks) or a module path; may be repeated."
        ),
    ] = None,  # fmt: skip
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --out if it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a model smaller and write it to a directory that transformers opens.

    Example: laconic compress my-model --method rtn --set bits=4 --out my-model-4bit
    """
    settings = dict(_pair(text) for text in set_ or [])
    plan = _read_recipe(recipe) if recipe is not None else {}
    if recipe is not None and (method or settings):
        raise UsageError("give either --recipe or --method with --set, not both")
    budget = budget or plan.get("budget")
    name = method or plan.get("method") or (DEFAULT_METHOD if budget else None)
    if name is None:
        raise UsageError(
            "give --method NAME, --recipe FILE or --budget B; `laconic methods` lists the names"
        )
    from laconic.registry import find

    entry = find(name)
    quiet_libraries()
    from laconic.compression import compress as run

    chosen = entry.load().from_settings(settings or plan.get("settings", {}))
    result = run(
        model, chosen, data, out=out, budget=budget, also=also or plan.get("also", ()),
        overwrite=overwrite, progress=Bar(),
    )  # fmt: skip
    if json:
        print_json(result.report.to_json())
    else:
        _show(result.report)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes KEY=VALUE, found {text!r}")
    return key, value


def _read_recipe(path: Path) -> dict[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path}: cannot be read as a recipe: {' '.join(str(error).split())}"
        ) from error
    known = {"method", "settings", "also", "budget"}
    if not isinstance(recipe, dict) or not set(recipe) <= known or "method" not in recipe:
        raise UsageError(
            f"{path}: a recipe has `method` and may have {', '.join(sorted(known - {'method'}))}"
        )
    return recipe


def _show(report: "CompressionReport") -> None:
    from rich.table import Table

    settings = " ".join(f"{key}={value}" for key, value in report.settings.items())
    console.print(
        f"[bold]{report.model}[/bold] → [bold]{report.out}[/bold]   {report.method} {settings}"
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
    console.print(f"  worst: {worst['name']} lost {100 * worst['error']:.3g}% of its energy")
    console.print(f"  {report.seconds:.1f} s, peak memory {size(report.peak_rss_bytes)}")
    for warning in report.warnings:
        console.print(f"  [yellow]warning:[/yellow] {warning}")
    console.print(f"  next: laconic evaluate {report.out} --against {report.model} --data TEXT")


def _by_format(layers: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        groups.setdefault(layer["format"], []).append(layer)
    return dict(sorted(groups.items()))
