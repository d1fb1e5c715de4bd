"""What a budget measured of every layer, kept in a folder for the next budget."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from laconic.errors import CorruptFile, UsageError
from laconic.files import save_json
from laconic.planning import Chain, OptionTable
from laconic.registry import name_of

ARRAYS = ("cost", "error", "importance")


class MeasuredTables:
    """Tables of options of one model on some data, a file for each chain of methods.

    Args:
        folder: made when something is put into it; tables of other models may lie there too.
        about: names the model, its data and the layers, as JSON values: what a table depends on
            besides the methods.

    Raises:
        UsageError: `folder` is a file.

    Example:
        >>> import tempfile
        >>> from laconic.quantize.rtn import RTN
        >>> tables, chains = MeasuredTables(Path(tempfile.mkdtemp()), ["model"]), [(RTN(2),), (RTN(3),)]
        >>> tables.put("bytes", OptionTable(["a"], chains, np.ones((1, 2)), np.zeros((1, 2)), 9))
        >>> tables.get("bytes", chains).weights, tables.get("bytes", chains[:1])
        (9, None)
    """

    def __init__(self, folder: Path, about: Sequence[Any]) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file: give a folder for what is measured")
        self.folder, self._about = folder, [version("laconic"), *about]

    def get(self, counted: str, options: Sequence[Chain]) -> OptionTable | None:
        """The table of `options`, whose costs are `counted`; None where there is none.

        Raises:
            CorruptFile: it cannot be read.
        """
        file = self._file(counted, options)
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text())
            arrays = {name: found[name] and np.array(found[name], float) for name in ARRAYS}
            table = OptionTable(
                list(map(str, found["layers"])), options, weights=int(found["weights"]), **arrays
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{file}: cannot be read: {error!r}; delete it") from error
        shape = len(table.layers), len(options)
        if not table.cost.shape == table.error.shape == shape:
            raise CorruptFile(
                f"{file}: {shape} costs expected, found {table.cost.shape}; delete it"
            )
        return table

    def put(self, counted: str, table: OptionTable) -> None:
        """Keeps `table`, whose costs are `counted`."""
        kept = {name: getattr(table, name) for name in ARRAYS}
        values = {name: None if array is None else array.tolist() for name, array in kept.items()}
        content = {"layers": table.layers, "weights": table.weights, **values}
        save_json(self._file(counted, table.options), content, indent=None)

    def _file(self, counted: str, options: Sequence[Chain]) -> Path:
        chains = [[[name_of(type(m)), m.settings()] for m in chain] for chain in options]
        text = json.dumps([*self._about, counted, chains], sort_keys=True)
        return self.folder / f"{xxhash.xxh3_128_hexdigest(text.encode())}.json"
