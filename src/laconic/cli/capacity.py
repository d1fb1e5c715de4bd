"""`laconic capacity`: what formats keep of Gaussian noise, and in how many bits."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli._common import Bar, Json, console, print_json


def capacity(
    formats: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME:KEY=VALUE,...]...",
            help="Methods with settings; join the links of a chain by `+`. A selection by default.",
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="CSV of training runs (parameters, tokens, format, loss): fits a scaling law."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rank formats by what they keep of Gaussian noise for the bits they take; needs no model.

    With --runs, fit how much a parameter in each format is worth, and rank by that.

    Example: laconic capacity rtn:bits=4,group=32 gptvq:bits=2,dim=4 magnitude:pattern=2:4+rtn:bits=4
    """
    from laconic.evaluate.capacity import DEFAULT
    from laconic.evaluate.capacity import capacity as measure

    specs = list(formats or DEFAULT)
    if runs is not None:
        _law(runs, specs if formats else [], json)
        return
    found = [measure(spec) for spec in Bar().track(specs, "measuring", total=len(specs))]
    if json:
        print_json({"formats": [each.to_json() for each in found]})
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("format", overflow="fold", min_width=24)
    headings = ("error", "worth", "in files", "share", "in memory", "share")
    for heading in headings:
        table.add_column(heading, justify="right")
    for each in found:
        table.add_row(
            each.format, f"{each.gmse:.5f}", f"{each.capacity_bits:.3f}",
            f"{each.stored_bits:.3f}", f"{each.efficiency:.1%}",
            f"{each.resident_bits:.3f}", f"{each.resident_efficiency:.1%}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "  [dim]error: share of the energy of noise that is lost; worth: bits that an ideal code would take for "
        "that error; share: worth over bits taken[/dim]"
    )


def _law(file: Path, formats: list[str], json: bool) -> None:
    """Fits a law to the runs in `file`, and ranks `formats` (those of the runs by default) by it."""
    from dataclasses import asdict

    from laconic.evaluate.scaling import DENSE, fit, read_runs

    law = fit(read_runs(file))
    known = [name for name in law.rho if name != DENSE]
    ranked = law.rank(formats or known)
    if json:
        rows = [{"format": n, "rho": r, "rho_per_bit": each} for n, r, each in ranked]
        print_json({"law": asdict(law), "formats": rows})
        return
    from rich.table import Table

    console.print(
        f"loss = {law.a:.4g} / (rho N)^{law.alpha:.3f} + {law.b:.4g} / D^{law.beta:.3f} + {law.e:.4f}   "
        f"[dim]off by {law.residual:.2%}[/dim]"
    )
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("format", overflow="fold", min_width=24)
    for heading in ("rho", "left out", "rho / bit"):
        table.add_column(heading, justify="right")
    for name, rho, each in ranked:
        alone = law.left_out.get(name)
        table.add_row(name, f"{rho:.3f}", "" if alone is None else f"{alone:.3f}", f"{each:.3f}")
    console.print(table)
    console.print(
        "  [dim]rho: a parameter in the format is worth so many dense ones; left out: as the other formats tell it; "
        "rho / bit: what memory is worth[/dim]"
    )
