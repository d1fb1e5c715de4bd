"""`laconic evaluate`: what a model can do, and what its compression cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laconic.cli._common import (
    Bar,
    Data,
    Device,
    Json,
    Trust,
    console,
    print_json,
    quiet_libraries,
    size,
)
from laconic.errors import UsageError

if TYPE_CHECKING:
    from laconic.evaluate import EvaluationReport


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model directory, or package.module:factory[@path].")
    ],
    data: Data,
    against: Annotated[
        str | None, typer.Option(help="The dense model, to compare with window by window.")
    ] = None,
    slice: Annotated[str, typer.Option(help="quick (first 100 windows) or full.")] = "full",
    batch: Annotated[
        int, typer.Option(help="Windows at a time; the result does not depend on it.")
    ] = 8,
    save: Annotated[
        Path | None, typer.Option(help="Write the JSON to this file too, for `laconic report`.")
    ] = None,
    device: Device = "cpu",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Measure perplexity or accuracy, bytes and speed; with --against, what was lost.

    Example: laconic evaluate my-model-4bit --against my-model --data valid.txt
    """
    if slice not in ("quick", "full"):
        raise UsageError(f"--slice is quick or full, found {slice!r}")
    quiet_libraries()
    from laconic.evaluate import evaluate as run
    from laconic.files import save_json

    report = run(
        model, data, against=against, slice=slice, batch=batch, device=device, trust=trust,
        progress=Bar(),
    )  # fmt: skip
    if save is not None:
        save_json(save, report.to_json())
    if json:
        print_json(report.to_json())
    else:
        show(report)


def show(report: "EvaluationReport") -> None:
    """Prints a report."""
    stored = "" if report.stored_bytes is None else f"{size(report.stored_bytes)} stored, "
    quality = f"accuracy {100 * report.accuracy:.2f}%"
    if report.perplexity is not None:
        quality = f"perplexity {report.perplexity:.2f}"
    unit = "tokens" if report.task == "language" else "examples"
    console.print(
        f"[bold]{report.model}[/bold]   {quality} on {report.tokens:,} {unit} ({report.slice})"
    )
    console.print(f"  {stored}{size(report.resident_bytes)} in memory, {report.seconds:.1f} s")
    if report.against is None:
        return
    against = report.against
    low, high = against["ci95"]
    colour = {"worse": "yellow", "better": "green", "tie": "cyan"}[against["verdict"]]
    console.print(
        f"  against {against['model']}: excess log-perplexity "
        f"[{colour}]{against['excess_log_perplexity']:+.4f}[/{colour}] nats, 95% [{low:+.4f}, {high:+.4f}]"
    )
    console.print(
        f"  {100 * against['flips']:.2f}% flips, {against['kl_per_token']:.4f} nats KL, "
        f"{against['speed_ratio']:.2f}x its speed"
    )
