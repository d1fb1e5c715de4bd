"""`laconic pack`, `unpack` and `verify`: files and folders in one smaller file, without loss."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli._common import Bar, Json, console, messages, plural, print_json, size

Out = Annotated[Path | None, typer.Option(help="Where to; - for standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 for one a processor.")]
Archive = Annotated[Path, typer.Argument(help="What laconic pack wrote; - for standard input.")]


def pack(
    path: Annotated[
        Path, typer.Argument(help="File or folder; checkpoints best. - for standard input.")
    ],
    out: Out = None,
    small: Annotated[
        bool, typer.Option("--small", help="About 1 % smaller, and half as fast.")
    ] = False,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a file or folder smaller without loss; every byte comes back.

    Examples:
      laconic pack my-model
      laconic pack checkpoint.pt --out - | ssh host 'cat > checkpoint.pt.lac'
    """
    from laconic.store.packing import PIPE
    from laconic.store.packing import pack as run

    where, done = run(
        path, out, engine="rans" if small else "huffman", threads=threads or processors(),
        overwrite=overwrite, progress=Bar(),
    )  # fmt: skip
    if json:
        print_json({"path": str(where), **done.to_json()})
        return
    share = done.packed / max(1, done.raw)
    (messages if where == PIPE else console).print(
        f"[bold]{where}[/bold]   {plural(done.files, 'file')}, {size(done.raw)} in {size(done.packed)} "
        f"({share:.1%}), {done.seconds:.1f} s",
        soft_wrap=True,
    )


def unpack(
    path: Archive,
    out: Out = None,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Put packed files back, byte for byte.

    Example: laconic unpack my-model.lac
    """
    from laconic.store.packing import PIPE
    from laconic.store.packing import unpack as run

    where, done = run(
        path, out, threads=threads or processors(), overwrite=overwrite, progress=Bar()
    )
    if json:
        print_json({"path": str(where), **done.to_json()})
        return
    (messages if where == PIPE else console).print(
        f"[bold]{where}[/bold]   {plural(done.files, 'file')}, {size(done.raw)}, {done.seconds:.1f} s",
        soft_wrap=True,
    )


def verify(path: Archive, threads: Threads = 0, json: Json = False) -> None:
    """Check that every byte of a packed file is as it was.

    Example: laconic verify my-model.lac
    """
    from laconic.store.packing import verify as run

    done = run(path, threads=threads or processors(), progress=Bar())
    if json:
        print_json({"path": str(path), **done.to_json()})
        return
    console.print(
        f"[bold]{path}[/bold]   {plural(done.files, 'file')}, {size(done.raw)}: all as they were",
        soft_wrap=True,
    )


def processors() -> int:
    """How many this process may use."""
    import os

    return len(os.sched_getaffinity(0))
