"""`laconic demo`: the whole path on the bundled model, in about a minute."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli._common import Bar, Json, console, print_json, quiet_libraries
from laconic.errors import OutputExists

RECIPES = (  # (bits, group, range)
    (8, "row", "minmax"),
    (6, "row", "mse"),
    (4, 64, "minmax"),
    (4, 64, "mse"),
    (3, 64, "mse"),
    (3, 32, "mse"),
    (2, 32, "mse"),
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for models, runs and the report.")] = Path(
        "laconic-demo"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into --out although it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Compress the bundled model seven ways, measure each, draw the result.

    Example: laconic demo
    """
    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists; choose another --out or give --overwrite")
    quiet_libraries()
    from laconic.compression import compress
    from laconic.evaluate import evaluate
    from laconic.quantize.rtn import RTN
    from laconic.report.points import collect, save_json
    from laconic.report.table import print_table
    from laconic.report.write import write_report
    from laconic.zoo import REFERENCE, TEST_TEXT

    if not json:
        console.print(
            "A Llama of 2.2 M parameters, trained on speeches and Shakespeare, is compressed seven "
            "ways\nand measured on the first 100 windows of text that it never saw.\n"
        )
    for bits, group, range_ in Bar().track(RECIPES, "compressing and measuring", len(RECIPES)):
        method = RTN(bits=bits, group=group, range=range_)  # type: ignore[arg-type]
        name = f"int{bits}-{group}-{range_}"
        compress(REFERENCE, method, out=out / name, overwrite=overwrite)
        report = evaluate(out / name, TEST_TEXT, against=REFERENCE, slice="quick")
        save_json(out / "runs" / f"{name}.json", report.to_json())
    points = collect([out / "runs"])
    files = write_report(points, out / "report.html", "laconic demo")
    if json:
        print_json({"points": [p.to_json() for p in points], "files": [str(f) for f in files]})
        return
    print_table(points, console)
    console.print(f"\n  open {files[0]} in a browser; the picture is {files[1]}")
    console.print(f"  laconic inspect {out / 'int4-64-mse'}")
    console.print("  laconic compress YOUR-MODEL --budget 4bit --out smaller")
