"""Layers at several strengths: compressed once, kept, and put into a live model as a search asks."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from laconic.allocate.evolution import State
from laconic.allocate.fitness import LiveModel
from laconic.allocate.options import Options
from laconic.allocate.spaces import TableSpace, granularity
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.options import RunOptions
from laconic.calibrate.reports import relative_error
from laconic.calibrate.runner import run_layers
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.steps import BlockView
from laconic.errors import CorruptFile, UsageError
from laconic.files import whole_file
from laconic.models.sink import NoSink
from laconic.models.source import ModelSource
from laconic.numerics.parallel import parallel_map
from laconic.progress import SILENT, Progress
from laconic.tensors import Dense
from laconic.tensors.dtypes import to_raw
from laconic.tensors.stored import Record, decode_record, encode

Count = Literal["codes", "stored", "resident"]


class Strength(Protocol):
    """A method for single layers at one of its strengths, as `LayerMethod` is."""

    @property
    def wants(self) -> tuple[Statistic, ...]:
        """Statistics of a layer's inputs that it needs."""
        ...

    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters as JSON values."""
        ...

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """What a layer with this dense `weight` becomes."""
        ...


S = TypeVar("S", bound=Strength)


@dataclass(frozen=True)
class Entry:
    """One layer at one strength: what it costs in bits by each count, and the error of its weights."""

    bits: dict[str, int]
    error: float


class Database:
    """Every layer of a model at every strength of a method, compressed once.

    Statistics are those of the dense model's inputs, so that any choice of strengths can be put
    together. Values are kept compressed: in memory, or in one safetensors file for each layer with
    one blob for each strength. Files that are there already are not made again if the weight, the
    strengths and the data are the same.

    Args:
        source: the model.
        strengths: of the method.
        calibration: sequences, where a strength wants statistics.
        folder: for the files; in memory if there is none.
        device: where statistics are collected.
        progress: follows the blocks.

    Raises:
        DataError: a strength wants statistics and there is no data.
        BadWeights: a weight holds NaN or infinity.
        CorruptFile: a file of the folder is damaged.

    Attributes:
        entries: by layer name, one for each strength.
        weights: by layer name, how many.
    """

    def __init__(
        self, source: ModelSource, strengths: Sequence[Strength],
        *, calibration: Calibration | None = None, folder: Path | None = None, device: str = "cpu",
        progress: Progress = SILENT,
    ) -> None:  # fmt: skip
        if not strengths:
            raise UsageError("there are no strengths to choose from")
        self.strengths, self.folder = tuple(strengths), folder
        self.entries: dict[str, list[Entry]] = {}
        self.weights: dict[str, int] = {}
        self._records: dict[str, list[Record]] = {}
        wants = any(strength.wants for strength in strengths)
        self._data = calibration.fingerprint if wants and calibration is not None else ""
        run_layers(
            source, NoSink(), [_Maker(self)], calibration=calibration if wants else None,
            options=RunOptions(device=device), progress=progress, what="compressing at each strength",
        )  # fmt: skip

    def record(self, layer: str, number: int) -> Record:
        """A layer at strength `number`."""
        if layer in self._records:
            return self._records[layer][number]
        return self._read(layer, [number])[0]

    def options(self, count: Count, strengths: Sequence[S]) -> Options:
        """Costs in bits and relative errors times weights of all layers, pruned to what is worth it.

        Args:
            count: `codes`, bits of the integer codes alone; `stored`, entropy coded with all side
                information, as in a file; `resident`, as in memory.
            strengths: those the database was made of: the table's choices are (number, strength).

        Raises:
            UsageError: `codes` of a method whose values are not integer codes.
        """
        rows = {}
        for name, entries in self.entries.items():
            if any(count not in entry.bits for entry in entries):
                raise UsageError(
                    f"{name}: the method makes no plain codes; count stored or resident"
                )
            rows[name] = [
                (float(e.bits[count]), e.error * self.weights[name], (number, strengths[number]))
                for number, e in enumerate(entries)
            ]
        return Options.of(rows).pruned()

    def make(self, name: str, weight: Tensor, stats: LayerStats) -> None:
        """Compresses a layer at every strength, unless its file holds just that."""
        self.weights[name] = weight.numel()
        identity = self._identity(weight)
        if self.folder is not None and self._restore(name, identity):
            return
        made = parallel_map(lambda s: _made(s, weight, stats), self.strengths)
        self.entries[name] = [entry for _, entry in made]
        if self.folder is None:
            self._records[name] = [record for record, _ in made]
        else:
            self._write(name, identity, [record for record, _ in made])

    def _identity(self, weight: Tensor) -> str:
        digest = xxhash.xxh3_128(to_raw(weight).data)
        kinds = [[type(s).__qualname__, s.settings()] for s in self.strengths]
        digest.update(json.dumps([kinds, self._data, list(weight.shape)]).encode())
        return digest.hexdigest()

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, identity: str, records: Sequence[Record]) -> None:
        from safetensors.torch import save_file

        entries = [[e.bits, e.error] for e in self.entries[name]]
        blobs = {str(i): np.frombuffer(encode(r), np.uint8).copy() for i, r in enumerate(records)}
        tensors = {key: torch.from_numpy(blob) for key, blob in blobs.items()}
        metadata = {"identity": identity, "entries": json.dumps(entries)}
        with whole_file(self._path(name)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def _restore(self, name: str, identity: str) -> bool:
        """Takes over what the layer's file says, if it is of the same layer and strengths."""
        from safetensors import SafetensorError, safe_open

        if not self._path(name).is_file():
            return False
        try:
            with safe_open(self._path(name), "pt") as file:
                metadata = file.metadata() or {}
            if metadata.get("identity") != identity:
                return False
            self.entries[name] = [Entry(bits, e) for bits, e in json.loads(metadata["entries"])]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{self._path(name)}: {error!r}; remove it") from error
        return True

    def _read(self, name: str, numbers: Sequence[int]) -> list[Record]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(name), "pt") as file:
                return [decode_record(file.get_tensor(str(n)).numpy()) for n in numbers]
        except (SafetensorError, FileNotFoundError) as error:
            raise CorruptFile(f"{self._path(name)}: {error!r}") from error


class _Maker:
    """A step that fills a database and leaves the model dense."""

    changes_inputs = False
    follows_dense = False

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys(w for s in self.database.strengths for w in s.wants))

    def revise_block(self, view: BlockView) -> None:
        """Compresses the block's layers at every strength."""
        for layer in view.live.layers:
            self.database.make(layer.name, view.live.weight(layer), view.stats[layer.name])


def _made(strength: Strength, weight: Tensor, stats: LayerStats) -> tuple[Record, Entry]:
    seen = LayerStats(stats.layer, stats.collected)
    with torch.no_grad():
        record = strength.revise(weight, Record(Dense(weight)), seen)
    folded = weight if record.transform is None else record.transform.fold(weight)
    bits = {"stored": 8 * len(encode(record)), "resident": 8 * record.resident_bytes}
    if isinstance(getattr(record.weight, "bits", None), int):
        bits["codes"] = record.weight.bits * record.weight.numel  # type: ignore[attr-defined]
    return record, Entry(bits, relative_error(folded, record.weight))


class LevelSpace(TableSpace):
    """Each layer of a live model at one of its options, within an average of bits a weight.

    Args:
        model: in which layers are swapped; only those that differ are.
        table: costs in bits, as `Database.options` gives them.
        record: what a layer is at the choice (number, strength).
        bits: average over all weights that must not be exceeded. Whole costs meet it exactly, or the
            next sum below it that whole costs can have.
        weights: of all layers together.
        exact: whether it is met exactly.

    Raises:
        BudgetError: the average is outside of what the options reach.
    """

    def __init__(
        self, model: LiveModel, table: Options, record: Callable[[str, Any], Record],
        *, bits: float, weights: int, exact: bool,
    ) -> None:  # fmt: skip
        self.model, self.options, self._record = model, table, record
        budget = bits * weights
        if exact:
            grain = granularity(table.cost)
            reach = np.where(np.isfinite(table.cost), table.cost, 0).max(axis=1).sum()
            steps = np.floor((min(budget, reach) - table.least) / grain + 1e-9) if grain else 0
            budget = table.least + steps * grain if budget >= table.least else budget
        super().__init__(
            table.cost, budget, place=self._swap, start=_uniform(table.cost, budget, exact),
            exact=exact,
        )  # fmt: skip
        self._current: list[int | None] = [None] * self.n

    def choices(self, state: State) -> dict[str, Any]:
        """The choice of each layer in `state`."""
        return self.options.settings(np.asarray(state))

    def restore(self) -> None:
        """Puts every layer's dense weight back."""
        for i, name in enumerate(self.options.items):
            if self._current[i] is not None:
                self.model.install(name, None)
                self._current[i] = None

    def _swap(self, state: State) -> None:
        for i, (name, level) in enumerate(zip(self.options.items, state)):
            if self._current[i] != level:
                self.model.install(name, self._record(name, self.options.choices[i][level]))
                self._current[i] = level


def _uniform(cost: np.ndarray, budget: float, exact: bool) -> State | None:
    """Every layer at the highest level that all can have within the budget; None where that misses it."""
    for level in range(cost.shape[1] - 1, -1, -1):
        spent = cost[:, level].sum()
        if spent == budget if exact else spent <= budget:
            return (level,) * len(cost)
    return None


def by_layer(choices: Mapping[str, tuple[int, S]]) -> dict[str, S]:
    """The strength of each layer, of choices (number, strength)."""
    return {name: strength for name, (_, strength) in choices.items()}
