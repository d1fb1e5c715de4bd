"""`laconic inspect`: what is in a model directory or a weight file, without running it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from laconic.cli._common import Json, console, print_json, size

SHOWN = 40  # rows of the table; --json has them all


def inspect(
    path: Annotated[
        Path, typer.Argument(help="Model directory, safetensors file, or what laconic pack wrote.")
    ],
    json: Json = False,
    all_: Annotated[bool, typer.Option("--all", help="Show every tensor.")] = False,
) -> None:
    """Show formats, shapes and bytes of every tensor.

    Example: laconic inspect my-model-4bit
    """
    limit = None if all_ else SHOWN
    if path.is_file() and _is_archive(path):
        from laconic.store.inspection import inspect_archive

        inspection, show = inspect_archive(path), _show_archive
    else:
        from laconic.report.inspection import inspect_path

        inspection, show = inspect_path(path), _show
    if json:
        print_json(inspection)
    else:
        show(inspection, limit)


def _is_archive(path: Path) -> bool:
    from laconic.coding.framing import INDEXED_MAGIC

    with path.open("rb") as file:
        return file.read(len(INDEXED_MAGIC)) == INDEXED_MAGIC


def _show_archive(inspection: dict[str, Any], limit: int | None) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("file and tensor")
    table.add_column("dtype", no_wrap=True)
    for heading in ("shape", "bytes", "packed", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("as", no_wrap=True)
    rows = []
    for file in inspection["files"]:
        rows.append((f"[bold]{file['path']}[/bold]", file["kind"], "", file))
        rows += [
            (f"  {t['name']}", t["dtype"].lower(), "x".join(map(str, t["shape"])), t)
            for t in file["tensors"]
        ]
        if file["tensors"]:
            rows.append(("  [dim]the rest[/dim]", "", "", file["rest"]))
    for name, dtype, shape, row in rows[:limit]:
        share = f"{row['stored_bytes'] / max(1, row['raw_bytes']):.1%}"
        table.add_row(
            name, dtype, shape, size(row["raw_bytes"]), size(row["stored_bytes"]), share,
            row.get("as", ""),
        )  # fmt: skip
    console.print(f"[bold]{inspection['path']}[/bold]   packed by laconic", soft_wrap=True)
    console.print(table)
    if limit is not None and len(rows) > limit:
        console.print(f"  [dim]… {len(rows) - limit} more: --all[/dim]")
    raw, stored = inspection["raw_bytes"], inspection["stored_bytes"]
    console.print(f"  {size(raw)} in {size(stored)} ({stored / max(1, raw):.1%})")


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
