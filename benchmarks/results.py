"""docs/results.md: one section for each proof, replaced when the proof is run again.

A run on some of the models replaces what the section says of them, and leaves what it says of others.
"""

import platform
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.bench import ROOT, Result

HEADING = """# Results

Every number on this page was measured by `python -m benchmarks` (`--write` replaces the sections of
the proofs that ran). A failed check stays here with its numbers. Speeds are ratios within one run.

Symmetric integer grids gained a value on 27 November 2026. Sections without a date were measured before, when
integers of 2 to 4 bits lost up to twice as much; that concerns RTN, GPTQ, AWQ, OBQ, OBR and REQuant on symmetric grids,
and whatever is compared with them.
"""
CLAIMS = ["claim", "holds", "numbers"]
ALL = "all models"
RUN = "- Measured on "


@dataclass
class Section:
    """What the page says of one proof, as lines.

    Attributes:
        name: `area/proof`.
        runs: on which models, and what is to be known of the run.
        notes: sentences.
        tables: rows by title and head; the claims have no title.
    """

    name: str
    runs: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    tables: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Result, models: Sequence[str] | None = None) -> "Section":
        """What a run found, on `models` if not on all."""
        circumstances = (
            f"slice `{result.slice}`, {result.seconds:.0f} s on {platform.machine()}, "
            f"Python {platform.python_version()}, {date.today()}{_commit()}"
        )
        section = cls(result.name, [(", ".join(models or [ALL]), circumstances)], result.notes)
        claims = [[c.claim, "yes" if c.held else "**no**", _numbers(c.numbers)] for c in result.checks]  # fmt: skip
        section.tables["", _line(CLAIMS)] = [_line(row) for row in claims]
        for table in result.tables:
            section.tables[table.title, _line(table.columns)] = [_line(row) for row in table.rows]
        return section

    @classmethod
    def parse(cls, text: str) -> "Section":
        """What `render` wrote."""
        lines = text.splitlines()
        section = cls(lines[0].removeprefix("## ").strip(), [])
        title = ""
        rows: list[str] | None = None
        for number, line in enumerate(lines[1:], 1):
            if " checks hold; " in line and not section.runs:
                section.runs.append((ALL, line.split(" checks hold; ")[1].rstrip(".")))
            elif line.startswith(RUN):
                models, circumstances = line.removeprefix(RUN).split(": ", 1)
                section.runs.append((models, circumstances.rstrip(".")))
            elif line.startswith("- "):
                section.notes.append(line.removeprefix("- "))
            elif line.startswith("**"):
                title = line.strip("*")
            elif line.startswith("|") and rows is None:
                rows = section.tables.setdefault((title, line), [])
            elif line.startswith("|") and not set(line) <= set("| -"):
                assert rows is not None, f"{section.name}, line {number}"
                rows.append(line)
            elif not line:
                rows = None
        return section

    def keeping(self, before: "Section", others: Collection[str]) -> "Section":
        """This one, and what `before` says of `others`, models that were not run."""

        def of_others(line: str) -> bool:
            return _first_word(line) in others

        merged = Section(self.name, [])
        said = {_first_word(line) for line in chain(before.notes, *before.tables.values())}
        for names, circumstances in before.runs:
            known = said if names == ALL else names.split(", ")
            here = [name for name in sorted(known) if name in others]
            if here:
                merged.runs.append((", ".join(here), circumstances))
        merged.runs += self.runs
        merged.notes = [*filter(of_others, before.notes), *self.notes]
        for key, rows in self.tables.items():
            merged.tables[key] = [*filter(of_others, before.tables.get(key, [])), *rows]
        return merged

    def render(self) -> str:
        """The section in Markdown."""
        (claims,) = (rows for (title, _), rows in self.tables.items() if not title)
        held = sum("| yes |" in row for row in claims)
        lines = [f"## {self.name}", "", f"{held} of {len(claims)} checks hold.", ""]
        lines += [f"{RUN}{models}: {circumstances}." for models, circumstances in self.runs]
        lines += [f"- {note}" for note in self.notes]
        for (title, head), rows in self.tables.items():
            lines += ["", *([f"**{title}**", ""] if title else [])]
            lines += [head, "|" + " --- |" * (len(re.split(r"(?<!\\)\|", head)) - 2), *rows]
        return "\n".join(lines) + "\n"


def update_results(
    file: Path, results: Sequence[Result], models: Sequence[str] | None = None,
    others: Collection[str] = (),
) -> None:  # fmt: skip
    """Replaces or adds the sections of `results` in `file`.

    Args:
        file: the page.
        results: of the proofs that ran.
        models: that they ran on, if not on all.
        others: the models left out, of which sections keep what they say.
    """
    sections = _sections(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for result in results:
        section = Section.of(result, models)
        if models is not None and result.name in sections:
            section = section.keeping(Section.parse(sections[result.name]), others)
        sections[result.name] = section.render()
    body = "\n".join(sections[name] for name in sorted(sections))
    file.write_text(f"{HEADING}\n{body}", encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {
        part.split("\n", 1)[0].removeprefix("## ").strip(): part.rstrip() + "\n" for part in parts
    }


def _first_word(line: str) -> str:
    """What a note or a row begins with: `llama-tiny` of `llama-tiny: ...`, `llama-tiny, ...` and of `| llama-tiny int4 | ...`."""
    words: list[str] = re.split(r"[:, ]", line.removeprefix("| "), maxsplit=1)
    return words[0]


def _commit() -> str:
    """`, at 0123abc`; nothing where there is no git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", at {found.stdout.strip()}"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _numbers(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in numbers.items())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
