"""What can go wrong, as types. Each message says what was expected, what was found, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class LaconicError(Exception):
    """Base of every error that laconic raises on purpose; the command line prints it in one line."""


class UsageError(LaconicError):
    """The call itself is wrong: an unknown name, a bad setting, a missing argument (exit code 2)."""


class BudgetError(UsageError):
    """A budget that cannot be parsed or reached; says the smallest that can be."""


class UnsupportedModel(LaconicError):
    """A path that is no model, or a model whose parts are not known."""


class CorruptFile(LaconicError):
    """Bytes that are truncated, altered or not of the format they claim to be."""


class BadWeights(LaconicError):
    """A tensor that holds NaN or infinity, or has a shape that a method cannot take."""


class DataError(LaconicError):
    """Calibration or evaluation data that is empty, too short or of the wrong kind."""


class OutputExists(UsageError):
    """The output is there already and `--overwrite` was not given."""


class MissingExtra(LaconicError):
    """An optional dependency is not installed; names the command that installs it."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed; it comes with: pip install 'laconic[{extra}]'"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known name, or lists all when none is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
