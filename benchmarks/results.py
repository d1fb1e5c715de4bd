"""docs/results.md: one section for each proof, replaced when the proof is run again."""

import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.bench import Result

HEADING = """# Results

Every number on this page was measured by `python -m benchmarks` (`--write` replaces the sections of
the proofs that ran). A failed check stays here with its numbers. Speeds are ratios within one run.

Symmetric integer grids gained a value on 27 November 2026. Sections without a date were measured before, when
integers of 2 to 4 bits lost up to twice as much; that concerns RTN, GPTQ, AWQ, OBQ, OBR and REQuant on symmetric grids,
and whatever is compared with them.
"""


def update_results(file: Path, results: Sequence[Result]) -> None:
    """Replaces or adds the sections of `results` in `file`."""
    sections = _sections(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for result in results:
        sections[result.name] = _section(result)
    body = "\n".join(sections[name] for name in sorted(sections))
    file.write_text(f"{HEADING}\n{body}", encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {
        part.split("\n", 1)[0].removeprefix("## ").strip(): part.rstrip() + "\n" for part in parts
    }


def _section(result: Result) -> str:
    held = len(result.checks) - result.failed
    lines = [
        f"## {result.name}",
        "",
        f"{held} of {len(result.checks)} checks hold; slice `{result.slice}`, "
        f"{result.seconds:.0f} s on {platform.machine()}, Python {platform.python_version()}, {date.today()}.",
        "",
    ]
    lines += [f"- {note}" for note in result.notes] + ([""] if result.notes else [])
    lines += _markdown(
        ["claim", "holds", "numbers"],
        [[c.claim, "yes" if c.held else "**no**", _numbers(c.numbers)] for c in result.checks],
    )
    for table in result.tables:
        lines += ["", f"**{table.title}**", "", *_markdown(table.columns, table.rows)]
    return "\n".join(lines) + "\n"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(columns), "|" + " --- |" * len(columns), *(line(row) for row in rows)]


def _numbers(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in numbers.items())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
