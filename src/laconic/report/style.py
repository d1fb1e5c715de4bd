"""One look for pictures and pages."""

INK, PAPER, FAINT = "#1c1b19", "#fdfcf9", "#d9d5cb"
COLOURS = (
    "#b5402a", "#2f6690", "#5a7d3a", "#8a5a9e", "#c98a1b",
    "#3a7d7c", "#c4617f", "#6b5b4b", "#98a13b", "#4a4e8c",
)  # fmt: skip
DENSE = "#7d786c"
