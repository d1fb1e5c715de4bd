"""The command line: one file per verb. Verbs import what they need when they run."""

import functools
import sys
from collections.abc import Callable

import typer

from laconic.cli import (
    capacity,
    compress,
    demo,
    evaluate,
    exchange,
    inspect,
    methods,
    pack,
    report,
    store,
)
from laconic.errors import LaconicError, UsageError

VERBS: tuple[Callable[..., None], ...] = (
    demo.demo,
    compress.compress,
    evaluate.evaluate,
    methods.methods,
    inspect.inspect,
    pack.pack,
    pack.unpack,
    pack.verify,
    report.report,
    capacity.capacity,
    exchange.export,
    exchange.import_,
)

app = typer.Typer(
    name="laconic",
    help="The same with fewer bits: makes models smaller, and shows what that cost.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _interruptible(verb: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C ends a verb like any other failure: with one line, and nothing left behind."""

    @functools.wraps(verb)
    def run(*args: object, **options: object) -> None:
        try:
            verb(*args, **options)
        except KeyboardInterrupt as error:
            left = getattr(error, "__notes__", ["nothing was left half-written"])
            raise LaconicError(f"interrupted; {left[0]}") from None

    return run


for verb in VERBS:
    app.command(verb.__name__.rstrip("_"))(_interruptible(verb))
app.add_typer(store.app, name="store")


def main() -> None:
    """Runs the command line; exit code 0, 1 (failed) or 2 (usage)."""
    try:
        app()
    except UsageError as error:
        _fail(error, 2)
    except LaconicError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was left half-written", 1)
    except (OSError, MemoryError) as error:
        _fail(error if str(error) else "out of memory", 1)


def _fail(problem: object, code: int) -> None:
    print(f"laconic: error: {problem}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
