"""`laconic demo`: the whole path on the bundled model, in about a minute."""

from pathlib import Path
from typing import Annotated, Any

import typer

from laconic.cli._common import Bar, Json, console, print_json, quiet_libraries

RUNS: dict[str, dict[str, Any]] = {
    "int8-row": {"bits": 8, "group": "row", "range": "minmax"},
    "int6-row": {"bits": 6, "group": "row"},
    "int4-g64-minmax": {"bits": 4, "range": "minmax"},
    "int4-g64": {"bits": 4},
    "int3-g64": {"bits": 3},
    "int2-g32": {"bits": 2, "group": 32},
}
BUDGET = "3.3bit"


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
    from laconic.files import expect_free, save_json

    expect_free(out, overwrite)
    quiet_libraries()
    from laconic.compression import compress
    from laconic.evaluate import evaluate
    from laconic.quantize.rtn import RTN
    from laconic.report.points import collect
    from laconic.report.table import print_table
    from laconic.report.write import write_report
    from laconic.zoo import REFERENCE, TEST_TEXT

    if not json:
        console.print(
            "A Llama of 2.2 M parameters, trained on speeches and Shakespeare, is compressed seven "
            "ways\nand measured on the first 100 windows of text that it never saw.\n"
        )
    runs: dict[str, tuple[RTN, str | None]] = {n: (RTN(**s), None) for n, s in RUNS.items()}
    runs[f"budget-{BUDGET}"] = (RTN(), BUDGET)
    for name, (method, budget) in Bar().track(runs.items(), "compressing", len(runs)):
        compress(REFERENCE, method, out=out / name, budget=budget, overwrite=overwrite)
        report = evaluate(out / name, TEST_TEXT, against=REFERENCE, slice="quick")
        save_json(out / "runs" / f"{name}.json", report.to_json())
    points = collect([out / "runs"])
    files = write_report(points, out / "report.html", "laconic demo")
    if json:
        print_json({"points": [p.to_json() for p in points], "files": [str(f) for f in files]})
        return
    print_table(points, console)
    console.print(f"\n  open {files[0]} in a browser; the picture is {files[1]}")
    console.print(f"  laconic inspect {out / 'int4-g64'}")
    console.print("  laconic compress YOUR-MODEL --budget 4bit --out smaller")
