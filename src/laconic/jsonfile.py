"""JSON files that are there whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def save_json(path: Path, value: dict[str, Any], *, indent: int | None = 1) -> None:
    """Writes JSON to a temporary name and renames it; makes the folder.

    Args:
        path: of the file.
        value: of JSON types.
        indent: spaces a level; None for one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
    temporary.replace(path)
