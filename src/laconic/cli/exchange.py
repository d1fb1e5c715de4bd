"""`laconic export` and `laconic import`: models for other tools, and from them."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli._common import Json, console, plural, print_json, quiet_libraries, size

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def export(
    path: Annotated[Path, typer.Argument(help="Directory that laconic compress wrote.")],
    to: Annotated[
        str,
        typer.Option(
            help="compressed-tensors, gptq, gguf, or peft for the adapter that eora made."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make; of gguf, the file.")],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a compressed model so that vLLM, transformers or llama.cpp opens it.

    Example: laconic export my-model-4bit --to compressed-tensors --out my-model-vllm
    """
    quiet_libraries()
    from laconic.exchange import export as run

    done = run(path, to, out, overwrite=overwrite)  # type: ignore[arg-type]
    if json:
        print_json(done.to_json())
        return
    console.print(f"[bold]{done.out}[/bold]   {plural(done.layers, 'layer')} as {done.to}")
    console.print(f"  {size(done.stored_bytes)} in files")
    if done.rounding:
        console.print(f"  scales are rounded there, by {done.rounding:.1e} of themselves at most")
    for note in done.notes:
        console.print(f"  note: {note}")


def import_(
    path: Annotated[Path, typer.Argument(help="Directory of a compressed-tensors or GPTQ model.")],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Open a model that another tool quantized; codes stay the same, files get smaller.

    Example: laconic import someones-gptq-model --out model
    """
    quiet_libraries()
    from laconic.exchange import import_model

    done = import_model(path, out, overwrite=overwrite)
    if json:
        print_json(done.to_json())
        return
    console.print(f"[bold]{done.out}[/bold]   {plural(done.layers, 'layer')} from {done.method}")
    console.print(
        f"  {size(done.before_bytes)} before, {size(done.stored_bytes)} now, "
        f"{100 * done.stored_bytes / max(1, done.before_bytes):.0f} %"
    )
