"""The page and the picture of a report."""

from collections.abc import Sequence
from pathlib import Path

from laconic.errors import DataError
from laconic.report.figure import draw
from laconic.report.page import render
from laconic.report.points import Point


def write_report(points: Sequence[Point], out: Path, title: str) -> tuple[Path, Path]:
    """Writes `out` (HTML, self-contained) and a PNG beside it.

    Returns:
        The two files.

    Raises:
        DataError: no point has both a size and a quality, or layers, to draw.
    """
    if not any(p.quality is not None or p.layers for p in points):
        raise DataError("nothing to draw: no run has a measured quality or layers")
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = out.with_suffix(".png")
    draw(points, picture, title)
    out.write_text(render(points, title), encoding="utf-8")
    return out, picture
