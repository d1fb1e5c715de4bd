"""Runs proofs: `python -m benchmarks AREA[/NAME] ... --zoo DIR --data DIR`."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.bench import ROOT, Bench, Result
from benchmarks.results import update_results

SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "docs" / "results.md"


def proofs() -> list[str]:
    """All proofs, as area/name."""
    here = Path(__file__).parent
    files = sorted(here.glob("*/*.py"))
    return [f"{f.parent.name}/{f.stem}" for f in files if not f.stem.startswith("_")]


def select(wanted: list[str], everything: bool) -> list[str]:
    known = proofs()
    if everything:
        return known
    chosen = [name for want in wanted for name in known if want in (name, name.split("/")[0])]
    missing = [w for w in wanted if not any(w in (n, n.split("/")[0]) for n in known)]
    if missing or not chosen:
        raise SystemExit(
            f"no proof {missing[0] if missing else ''!r}; there are: {', '.join(known)}"
        )
    return list(dict.fromkeys(chosen))


def run(name: str, options: argparse.Namespace) -> Result:
    print(f"== {name} ({options.slice})", flush=True)
    bench = Bench(
        name, options.zoo, options.data, options.slice, options.fresh,
        lambda line: print(line, flush=True), options.models,
    )  # fmt: skip
    module = importlib.import_module(f"benchmarks.{name.replace('/', '.')}")
    with bench.timed():
        module.prove(bench)
    for table in bench.result.tables:
        print(f"\n{table.title}\n" + "\n".join(_aligned([table.columns, *table.rows])))
    print()
    return bench.result


def _left_out(options: argparse.Namespace) -> list[str]:
    """Models of the zoo that were not asked for, where only some were."""
    if not options.models:
        return []
    names = Bench("", options.zoo, options.data, options.slice, False, print).models()
    return [name for name in names if name not in options.models]


def _aligned(rows: list[list[object]]) -> list[str]:
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in cells
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("proofs", nargs="*", metavar="AREA[/NAME]")
    parser.add_argument(
        "--all", action="store_true", help="every proof; regenerates docs/results.md"
    )
    parser.add_argument("--list", action="store_true", help="list the proofs")
    parser.add_argument("--zoo", type=Path, default=SHARED / "zoo", help="folder of trained models")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of real inputs")
    parser.add_argument("--slice", choices=("quick", "full"), default="full")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME",
        help="only these of the zoo; --write leaves what the results say of others",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--fresh", action="store_true", help="ignore cached measurements")
    parser.add_argument("--write", action="store_true", help="put the results into docs/results.md")
    options = parser.parse_args()
    if options.list:
        print("\n".join(proofs()))
        return
    import torch

    from laconic.cli._common import quiet_libraries

    torch.set_num_threads(options.threads)
    quiet_libraries()
    results = [run(name, options) for name in select(options.proofs, options.all)]
    if options.json is not None:
        options.json.write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n")
    if options.write or options.all:
        update_results(RESULTS, results, options.models, _left_out(options))
    failed = sum(result.failed for result in results)
    print(f"{sum(len(r.checks) for r in results)} checks, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
