"""`laconic methods`: what there is, and what one of them can be told."""

from typing import Annotated, Any

import typer

from laconic.cli._common import Json, console, print_json
from laconic.registry import ENTRIES, Entry, Kind, find


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this one with its settings.")] = None,
    json: Json = False,
) -> None:
    """List the methods, or describe one.

    Example: laconic methods rtn
    """
    if name is None:
        entries = {n: e for n, e in ENTRIES.items() if e.kind is Kind.METHOD}
        if json:
            print_json(
                {n: {"kind": e.kind.value, "summary": e.summary} for n, e in entries.items()}
            )
        else:
            _list(entries)
        return
    description = _describe(name, find(name))
    if json:
        print_json(description)
    else:
        _show(description)


def _list(entries: dict[str, Entry]) -> None:
    width = max(map(len, entries))
    for name, entry in sorted(entries.items()):
        console.print(f"[bold]{name:<{width}}[/bold]  {entry.summary}")
    console.print("[dim]laconic methods NAME shows its settings[/dim]")


def _describe(name: str, entry: Entry) -> dict[str, Any]:
    import inspect
    from dataclasses import fields

    cls = entry.load()
    paper = cls.paper
    return {
        "name": name,
        "summary": entry.summary,
        "needs": cls.needs.value,
        "taxonomy": list(cls.taxonomy),
        "paper": {"title": paper.title, "year": paper.year, "arxiv": paper.arxiv, "row": paper.row},
        "settings": [
            {"name": f.name, "type": getattr(f.type, "__name__", str(f.type)), "default": f.default}
            for f in fields(cls)
        ],
        "description": inspect.getdoc(cls) or "",
    }


def _show(description: dict[str, Any]) -> None:
    paper = description["paper"]
    source = f"{paper['title']} ({paper['year']}" + (
        f", arXiv {paper['arxiv']})" if paper["arxiv"] else ")"
    )
    console.print(
        f"[bold]{description['name']}[/bold]  needs {description['needs']}; {', '.join(description['taxonomy'])}"
    )
    console.print(f"[dim]{source}[/dim]\n")
    console.print(description["description"], markup=False)
    defaults = " ".join(f"--set {s['name']}={s['default']}" for s in description["settings"])
    console.print(f"\ndefaults: --method {description['name']} {defaults}", markup=False)
