"""`laconic report`: runs, drawn together."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli._common import Json, console, print_json


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="JSON files of `evaluate --save`, compressed model directories, or folders of them."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The page to write; the picture goes beside it as .png.")
    ] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "laconic report",
    json: Json = False,
) -> None:
    """Draw runs as one self-contained HTML page and a PNG: size against quality.

    Example: laconic report runs/ --out report.html
    """
    from laconic.report.points import collect
    from laconic.report.table import print_table
    from laconic.report.write import write_report

    points = collect(runs)
    files = write_report(points, out, title)
    if json:
        print_json(
            {"points": [point.to_json() for point in points], "files": [str(f) for f in files]}
        )
        return
    print_table(points, console)
    for file in files:
        console.print(f"  wrote {file}")
