"""Numbers as people read them."""


def size(count: float) -> str:
    """Bytes, in decimal units.

    Example:
        >>> size(4_870_000), size(12)
        ('4.87 MB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def plural(count: int, noun: str) -> str:
    """How many of what.

    Example:
        >>> plural(1, "layer"), plural(2, "layer")
        ('1 layer', '2 layers')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
