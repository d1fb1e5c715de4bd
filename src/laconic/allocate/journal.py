"""The log of a search: one JSON line for each measurement, so that nothing is measured twice."""

import hashlib
import json
import math
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from laconic.errors import CorruptFile, UsageError

FORMAT = 1


class Journal:
    """Measurements by generation, stage and state; kept in memory only where there is no file.

    Args:
        file: to go on with, or to begin; None for none.
        header: what the search is. A file of another search is refused.

    Raises:
        UsageError: the file's first line is of another search.
        CorruptFile: a line is damaged. The last one may be cut off, as a killed process leaves it:
            it is dropped.
    """

    def __init__(self, file: Path | None, header: dict[str, Any]) -> None:
        self.header = {"search": "evolution", "format": FORMAT, **header}
        self._file = file
        self._known: dict[tuple[int, int, tuple[int, ...]], float] = {}
        self._out: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._file is None:
            return self
        self._file.parent.mkdir(parents=True, exist_ok=True)
        data = self._file.read_bytes() if self._file.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines, start=1):
            self._read(number, line)
        self._out = self._file.open("r+b" if data else "wb")
        self._out.truncate(len(whole))
        self._out.seek(len(whole))
        if not lines:
            self._write(self.header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._out is not None:
            self._out.close()

    def find(self, generation: int, stage: int, state: tuple[int, ...]) -> float | None:
        """The loss that was measured there, if it was."""
        return self._known.get((generation, stage, state))

    def add(
        self, generation: int, stage: int, state: tuple[int, ...], samples: int, spent: float,
        loss: float,
    ) -> None:  # fmt: skip
        """Notes a measurement; it is on disk when this returns."""
        self._known[generation, stage, state] = loss
        self._write(
            {
                "generation": generation, "stage": stage, "state": list(state),
                "samples": samples, "spent": spent, "loss": loss if math.isfinite(loss) else None,
            }
        )  # fmt: skip

    def _write(self, values: dict[str, Any]) -> None:
        if self._out is not None:
            self._out.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
            self._out.flush()

    def _read(self, number: int, line: bytes) -> None:
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError(f"{values!r:.40}")
            if number == 1:
                self._check(values)
                return
            key = (int(values["generation"]), int(values["stage"]), tuple(values["state"]))
            loss = values["loss"]
            self._known[key] = math.inf if loss is None else float(loss)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{self._file}, line {number}: not of a search: {error!r}") from error

    def _check(self, values: dict[str, Any]) -> None:
        differing = sorted(
            name for name in {*values, *self.header} if values.get(name) != self.header.get(name)
        )
        if differing:
            raise UsageError(
                f"{self._file} is the log of another search ({', '.join(differing)} differ): "
                "give another log or remove it"
            )


def fingerprint(space: Any, fitness: Any) -> str:
    """A digest of the space's costs and of what `space` and `fitness` call their `fingerprint`."""
    digest = hashlib.sha256()
    for unit in range(space.n):
        costs = [float(space.cost(unit, level)) for level in range(space.levels(unit))]
        digest.update(repr(costs).encode())
    for part in (space, fitness):
        digest.update(str(getattr(part, "fingerprint", "")).encode() + b"\0")
    return digest.hexdigest()[:16]
