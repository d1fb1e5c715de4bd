"""The page of a store: models, families, and what is saved."""

import time
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from laconic.store.index import STEPS, Model
from laconic.store.store import Store
from laconic.words import size


def page(store: Store) -> str:
    """The page as HTML, with nothing from elsewhere."""
    models, totals = store.index.models(), store.index.totals()
    raw = max(1, totals["raw"])
    steps = [
        {"label": label, "bytes": size(totals[key]), "share": 100 * totals[key] / raw}
        for label, key in STEPS.items()
    ]
    environment = Environment(
        loader=PackageLoader("laconic.store", ""), autoescape=select_autoescape(["html.j2"])
    )
    return environment.get_template("page.html.j2").render(
        families=_families(models), steps=steps, totals=totals
    )


def _families(models: list[Model]) -> list[list[dict[str, Any]]]:
    """Models behind what they were made of, newest families first."""
    families: dict[str, list[Model]] = {}
    for model in models:
        families.setdefault(model.base or f"{model.name}@{model.revision}", []).append(model)
    newest = sorted(families.values(), key=lambda f: max(m.created for m in f), reverse=True)
    return [
        [_row(m) for m in sorted(family, key=lambda m: m.base is not None)] for family in newest
    ]


def _row(model: Model) -> dict[str, Any]:
    return {
        "name": model.name, "revision": model.revision, "files": model.files,
        "bytes": size(model.size), "base": model.base,
        "added": time.strftime("%Y-%m-%d %H:%M", time.localtime(model.created)),
    }  # fmt: skip
