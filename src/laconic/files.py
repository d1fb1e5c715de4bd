"""Files and folders that are there whole or not at all."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laconic.errors import OutputExists


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
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder that then takes the place of what is at `path`; as `whole_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(fresh: Path, path: Path) -> None:
    """Renames a folder to `path`; what was there, a file or a folder, goes only afterwards."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")


def expect_free(path: Path, overwrite: bool) -> None:
    """Nothing is at `path`, or it may be replaced.

    Raises:
        OutputExists: something is there and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists; choose another --out or give --overwrite")


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
