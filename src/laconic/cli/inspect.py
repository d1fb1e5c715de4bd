"""`laconic inspect`: what is in a model directory or a weight file, without running it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from laconic.cli._common import Json, console, print_json, size

SHOWN = 40  # rows of the table; --json has them all


def inspect(
    path: Annotated[Path, typer.Argument(help="Model directory or safetensors file.")],
    json: Json = False,
    all_: Annotated[bool, typer.Option("--all", help="Show every tensor.")] = False,
) -> None:
    """Show formats, shapes and bytes of every tensor.

    Example: laconic inspect my-model-4bit
    """
    from laconic.report.inspection import inspect_path

    inspection = inspect_path(path)
    if json:
        print_json(inspection)
    else:
        _show(inspection, None if all_ else SHOWN)


def _show(inspection: dict[str, Any], limit: int | None) -> None:
    from rich.table import Table

    made = ", ".join(
        f"{step['method']} " + " ".join(f"{k}={v}" for k, v in step["settings"].items())
        for step in inspection["recipe"]
    )
    console.print(f"[bold]{inspection['path']}[/bold]   {made or 'not compressed by laconic'}")
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("tensor", "format"):
        table.add_column(heading)
    for heading in ("shape", "stored", "bits", "in memory", "bits"):
        table.add_column(heading, justify="right")
    rows = inspection["tensors"]
    for row in rows[:limit]:
        weights = max(1, row["weights"])
        table.add_row(
            row["name"], row["format"], "x".join(map(str, row["shape"])) or "scalar",
            size(row["stored_bytes"]), f"{8 * row['stored_bytes'] / weights:.2f}",
            size(row["resident_bytes"]), f"{8 * row['resident_bytes'] / weights:.2f}",
        )  # fmt: skip
    console.print(table)
    if limit is not None and len(rows) > limit:
        console.print(f"  [dim]… {len(rows) - limit} more: --all[/dim]")
    console.print(
        f"  {inspection['weights']:,} weights, {size(inspection['stored_bytes'])} in files, "
        f"{size(inspection['resident_bytes'])} in memory, {size(inspection['dense_bytes'])} dense"
    )
