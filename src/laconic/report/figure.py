"""The picture: size against quality, and where the bits went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laconic.report.axes import Axis, quality_axis, size_axis
from laconic.report.points import Point
from laconic.report.style import COLOURS, FAINT, INK, PAPER

SHOWN_LAYERS = 60


def draw(points: Sequence[Point], file: Path, title: str) -> None:
    """Writes a PNG: a scatter of the points, and the layers of the one whose bits vary most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layered = [p for p in points if p.layers]
    with pyplot.rc_context(_look()):
        figure, axes = pyplot.subplots(
            1, 2 if layered else 1, figsize=(11 if layered else 6.5, 4.2), squeeze=False,
            width_ratios=(3, 2) if layered else None, layout="constrained",
        )  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        _scatter(axes[0][0], points)
        if layered:
            _bars(axes[0][1], max(layered, key=_spread))
        figure.savefig(file, dpi=160, format="png")
        pyplot.close(figure)


def _spread(point: Point) -> float:
    bits = [layer["bits_per_weight"] for layer in point.layers]
    return float(max(bits) - min(bits))


def _look() -> dict[str, object]:
    return {
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "xtick.color": INK,
        "ytick.color": INK,
    }


def _scatter(ax: Any, points: Sequence[Point]) -> None:
    size, quality = size_axis(points), quality_axis(points)
    for i, (point, x, y) in enumerate(_known(points, size, quality)):
        colour = COLOURS[i % len(COLOURS)]
        low, high = point.ci95 or (y, y)
        error = [[max(0.0, y - low)], [max(0.0, high - y)]] if point.excess == y else None
        ax.errorbar(x, y, yerr=error, fmt="o", color=colour, capsize=2, label=point.name)
    ax.set_xlabel(size.label)
    ax.set_ylabel(quality.label)
    if quality.log:
        ax.set_yscale("log")
    ax.margins(x=0.06, y=0.1)
    ax.legend(frameon=False, fontsize=8)


def _known(points: Sequence[Point], size: Axis, quality: Axis) -> list[tuple[Point, float, float]]:
    rows = zip(points, size.values, quality.values)
    return [(p, x, y) for p, x, y in rows if x is not None and y is not None]


def _bars(ax: Any, point: Point) -> None:
    layers = point.layers[:SHOWN_LAYERS]
    bits = [layer["bits_per_weight"] for layer in layers]
    positions = range(len(layers))
    ax.barh(positions, bits, color=COLOURS[1], height=0.75)
    names = [layer["name"] for layer in layers]
    ax.set_yticks(positions, names, fontsize=max(3, 7 - len(layers) / 20))
    ax.invert_yaxis()
    ax.set_xlabel(f"stored bits per weight: {point.name}")
    ax.grid(axis="y", visible=False)
