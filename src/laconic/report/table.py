"""Points as a table on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from laconic.report.points import Point

WIDE = 100  # characters from which all columns have room
COLUMNS = (
    "model",
    "stored",
    "kept",
    "bits",
    "in memory",
    "quality",
    "excess nats",
    "flips",
    "speed",
)


def print_table(points: Sequence[Point], console: Console) -> None:
    """Prints one row for each point."""
    cells = [row(point) for point in points]
    shown = [i for i in range(len(COLUMNS)) if i == 0 or any(line[i] for line in cells)]
    if console.width < WIDE and COLUMNS.index("in memory") in shown:
        shown.remove(COLUMNS.index("in memory"))
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for i in shown:
        table.add_column(COLUMNS[i], justify="right" if i else "left", no_wrap=True)
    for line in cells:
        table.add_row(*(line[i] for i in shown))
    console.print(table)


def row(point: Point) -> tuple[str, ...]:
    """The cells of a point, in the order of `COLUMNS`."""
    quality = "" if point.quality is None else f"{point.quality:.2f}"
    if point.metric == "accuracy" and point.quality is not None:
        quality = f"{100 * point.quality:.1f}%"
    excess = "" if point.excess is None else f"{point.excess:+.4f}"
    if point.ci95 is not None:
        excess += f" ±{(point.ci95[1] - point.ci95[0]) / 2:.4f}"
    return (
        point.name,
        "" if point.stored_bytes is None else f"{point.stored_bytes / 1e6:.2f} MB",
        "" if point.kept is None else f"{100 * point.kept:.1f}%",
        "" if point.bits_per_weight is None else f"{point.bits_per_weight:.2f}",
        "" if point.resident_bytes is None else f"{point.resident_bytes / 1e6:.2f} MB",
        quality,
        excess,
        "" if point.flips is None else f"{100 * point.flips:.1f}%",
        "" if point.speed_ratio is None else f"{point.speed_ratio:.2f}x",
    )
