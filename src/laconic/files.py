"""Files that are there whole or not at all."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that then takes its place at `path`; left out if the block raises.

    The name is in the same folder, which is made, and hidden; two processes or threads have two.

    Args:
        path: of the file, there already or not.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new folder" / "some.txt"
        >>> with whole_file(path) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> path.read_text(), temporary.exists()
        ('all of it', False)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(
    path: Path, value: dict[str, Any], *, indent: int | None = 1, sort_keys: bool = False
) -> None:
    """Writes a JSON file, whole or not at all; makes the folder.

    Args:
        path: of the file.
        value: of JSON types.
        indent: spaces a level; None for one line.
        sort_keys: instead of the order in which they were put.
    """
    with whole_file(path) as temporary:
        text = json.dumps(value, indent=indent, sort_keys=sort_keys)
        temporary.write_text(text + "\n", encoding="utf-8")
