"""`laconic store`: many models in one place, every tensor once, fine-tunes as differences."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from laconic.cli._common import Bar, Json, bar, console, plural, print_json, size
from laconic.cli.pack import Overwrite, Threads, processors

app = typer.Typer(
    help="Keep many models in one place: every tensor once, fine-tunes as differences.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Where = Annotated[
    Path, typer.Option("--store", envvar="LACONIC_STORE", help="Folder of the store.")
]
Name = Annotated[str, typer.Argument(help="Name of a model; NAME@REVISION for an older one.")]
HERE = Path("laconic-store")


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="File or folder of a model.")],
    name: Annotated[
        str | None, typer.Option(help="What to call it, such as someone/some-model.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Model that it was made of; 'none' for no search.")
    ] = None,
    store: Where = HERE,
    depth: Annotated[
        int, typer.Option(min=0, help="Differences behind one another; more for checkpoints.")
    ] = 1,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Add a model, or the next revision of one; what it was made of is found by its bits.

    Example: laconic store add my-finetune --name me/my-finetune
    """
    from laconic.store.store import Store

    added = Store.configured(store).add(
        path, name, base="" if base == "none" else base, threads=threads or processors(),
        max_depth=depth, progress=Bar(),
    )  # fmt: skip
    model = added.model
    if json:
        print_json({**_model(model), "known_bytes": added.known, "written_bytes": added.stored})
        return
    share = added.stored / max(1, model.size)
    console.print(
        f"[bold]{model.name}[/bold]@{model.revision[:8]}   {plural(model.files, 'file')}, "
        f"{size(model.size)}: {size(added.known)} known, {size(added.stored)} written "
        f"({share:.1%}), {added.seconds:.1f} s",
        soft_wrap=True,
    )
    if model.base:
        console.print(f"  as the difference from {_short(model.base)}")


@app.command()
def get(
    name: Name,
    out: Annotated[Path | None, typer.Argument(help="Folder to make.")] = None,
    store: Where = HERE,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write the files of a model, byte for byte.

    Example: laconic store get me/my-finetune
    """
    from laconic.store.reading import write_folder

    stored = _open(store).open(name)
    where = out or Path(stored.model.name.rpartition("/")[2])
    started = time.perf_counter()
    write_folder(
        stored, where, threads=threads or processors(), overwrite=overwrite, progress=Bar()
    )
    if json:
        print_json({"path": str(where), **_model(stored.model)})
        return
    console.print(
        f"[bold]{where}[/bold]   {plural(stored.model.files, 'file')}, {size(stored.model.size)}, "
        f"{time.perf_counter() - started:.1f} s",
        soft_wrap=True,
    )


@app.command()
def ls(
    name: Annotated[str | None, typer.Argument(help="Only the files of this model.")] = None,
    store: Where = HERE,
    json: Json = False,
) -> None:
    """List models, or the files of one."""
    from rich.table import Table

    home = _open(store)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    if name is not None:
        files = [*home.open(name).files.values()]
        if json:
            rows = [{"path": f.path, "kind": f.kind, "size": f.size} for f in files]
            print_json({"files": rows})
            return
        for heading in ("file", "kind"):
            table.add_column(heading)
        table.add_column("bytes", justify="right")
        for file in files:
            table.add_row(file.path, file.kind, size(file.size))
        console.print(table)
        return
    models = home.index.models()
    if json:
        print_json({"models": [_model(model) for model in models]})
        return
    for heading in ("model", "revision", "added"):
        table.add_column(heading, no_wrap=heading != "model")
    table.add_column("bytes", justify="right")
    table.add_column("made of")
    for model in models:
        added = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.created))
        table.add_row(
            model.name, model.revision[:8], added, size(model.size), _short(model.base or "")
        )
    console.print(table if models else f"no models in {store}")


@app.command()
def rm(name: Name, store: Where = HERE, json: Json = False) -> None:
    """Forget one revision of a model; what nothing else needs goes with the next gc."""
    model = _open(store).remove(name)
    if json:
        print_json(_model(model))
        return
    console.print(f"[bold]{model.name}[/bold]@{model.revision[:8]} is forgotten")


@app.command()
def gc(
    store: Where = HERE,
    now: Annotated[
        bool, typer.Option("--now", help="Also what was needed within the last hour.")
    ] = False,
    json: Json = False,
) -> None:
    """Delete what no model needs."""
    from laconic.store.store import GRACE

    done = _open(store).collect(grace=0 if now else GRACE)
    if json:
        print_json({"objects": done.objects, "packs": done.packs, "freed_bytes": done.freed})
        return
    console.print(
        f"{plural(done.objects, 'object')} and {plural(done.packs, 'pack')} deleted, "
        f"{size(done.freed)} freed"
    )


@app.command()
def verify(store: Where = HERE, json: Json = False) -> None:
    """Read everything, and name what is damaged and which models need it."""
    home = _open(store)
    bad = [(known, why) for known, why in home.damaged(Bar())]
    models = home.needing({known.digest for known, _ in bad}) if bad else []
    if json:
        print_json({
            "damaged": [{"object": known.digest.hex(), "why": why} for known, why in bad],
            "models": [_model(model) for model in models],
        })  # fmt: skip
    else:
        for _, why in bad:
            console.print(f"damaged: {why}", soft_wrap=True)
        for model in models:
            console.print(f"needs it: [bold]{model.name}[/bold]@{model.revision[:8]}")
        if not bad:
            console.print(f"[bold]{store}[/bold]   all as it was")
    if bad:
        raise typer.Exit(1)


@app.command()
def stat(store: Where = HERE, json: Json = False) -> None:
    """Show what each step saves."""
    from laconic.store.index import STEPS

    totals = _open(store).index.totals()
    if json:
        print_json(totals)
        return
    console.print(
        f"[bold]{store}[/bold]   {plural(totals['models'], 'model')}, {plural(totals['objects'], 'object')}, "
        f"{totals['differences']} as differences"
    )
    raw = max(1, totals["raw"])
    for label, key in {**STEPS, "on disk": "packs"}.items():
        share = totals[key] / raw
        console.print(f"  {label:<30} {bar(share, 20)} {size(totals[key]):>10} {share:>7.1%}")


@app.command()
def serve(
    store: Where = HERE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="LACONIC_TOKEN", help="Needed by every request; allows adding."),
    ] = None,
    threads: Threads = 0,
) -> None:
    """Serve the models to everything that downloads from the Hugging Face Hub.

    Example: laconic store serve, then HF_ENDPOINT=http://127.0.0.1:8000 python train.py
    """
    home = _open(store)
    try:
        import uvicorn

        from laconic.store.server import application
    except ImportError as error:
        from laconic.errors import MissingExtra

        raise MissingExtra(error.name or "fastapi", "store") from None
    address = f"http://{host}:{port}"
    console.print(
        f"[bold]{address}[/bold]   HF_ENDPOINT={address} makes clients use it; Ctrl-C ends"
    )
    served = application(home, token=token, threads=threads or processors())
    uvicorn.run(served, host=host, port=port, log_level="warning")


def _open(folder: Path) -> Any:
    from laconic.errors import UsageError
    from laconic.store.store import CONFIG, INDEX, Store

    if not ((folder / INDEX).is_file() or (folder / CONFIG).is_file()):
        raise UsageError(f"{folder}: no store is there; laconic store add makes one (--store)")
    return Store.configured(folder)


def _model(model: Any) -> dict[str, Any]:
    return {
        "name": model.name, "revision": model.revision, "files": model.files, "bytes": model.size,
        "base": model.base, "added": model.created,
    }  # fmt: skip


def _short(base: str) -> str:
    """A name with the first digits of its revision."""
    name, at, revision = base.partition("@")
    return f"{name}{at}{revision[:8]}"
