"""`laconic capacity`: what formats keep of Gaussian noise, and in how many bits."""

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
    json: Json = False,
) -> None:
    """Rank formats by what they keep of Gaussian noise for the bits they take; needs no model.

    Example: laconic capacity rtn:bits=4,group=32 gptvq:bits=2,dim=4 magnitude:pattern=2:4+rtn:bits=4
    """
    from laconic.evaluate.capacity import DEFAULT
    from laconic.evaluate.capacity import capacity as measure

    specs = list(formats or DEFAULT)
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
