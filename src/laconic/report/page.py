"""The page: one HTML file with everything in it, points that tell more when pointed at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laconic.report import style
from laconic.report.axes import quality_axis, resident_axis, size_axis
from laconic.report.points import Point
from laconic.report.table import COLUMNS, row

TEMPLATE = Path(__file__).parent / "page.html.j2"


def render(points: Sequence[Point], title: str) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        style=style,
        columns=COLUMNS,
        rows=[row(point) for point in points],
        data=_data(points),
        plotly=get_plotlyjs(),
    )


def _data(points: Sequence[Point]) -> str:
    """What the page's script draws, as JSON that cannot close its script element."""
    quality = quality_axis(points)
    axes = {
        "stored": {"label": size_axis(points).label, "x": size_axis(points).values},
        "resident": {"label": resident_axis(points).label, "x": resident_axis(points).values},
    }
    value: dict[str, Any] = {
        "axes": axes,
        "quality": {"label": quality.label, "y": quality.values, "log": quality.log},
        "points": [
            {
                "name": p.name,
                "method": p.method,
                "ci95": p.ci95,
                "cells": row(p),
                "layers": p.layers,
            }
            for p in points
        ],
        "columns": COLUMNS,
        "colours": style.COLOURS,
        "ink": style.INK,
        "faint": style.FAINT,
    }
    return json.dumps(value).replace("<", "\\u003c")
