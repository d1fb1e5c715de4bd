"""Statistics of a model's layers in a folder, to be used again: one safetensors file for each block.

They are of the dense model's inputs, so that they do not depend on what is done to the model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, Statistic
from laconic.errors import CorruptFile, UsageError
from laconic.files import save_json, whole_file
from laconic.models.layout import Layer
from laconic.models.safetensors import read_header, read_tensor
from laconic.models.shards import write_file

INDEX = "statistics.json"


class StatisticsLibrary:
    """What was collected of a model on some data, block by block.

    Args:
        folder: made when something is put into it.
        key: names model and data; what was collected of others is refused.

    Raises:
        UsageError: the folder holds statistics of another model or of other data, or is a file.
        CorruptFile: it cannot be read.
    """

    def __init__(self, folder: Path, key: str) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file: give a folder for statistics")
        self.folder, self._key = folder, key
        if not (folder / INDEX).is_file():
            return
        try:
            found = json.loads((folder / INDEX).read_text())["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{folder / INDEX}: cannot be read: {error!r}") from error
        if found != key:
            raise UsageError(
                f"{folder} holds statistics of another model or of other data: give another folder, or "
                "delete it"
            )

    def get(
        self, block: str, layers: Sequence[Layer], wants: Sequence[Statistic], device: str = "cpu"
    ) -> dict[str, LayerStats] | None:
        """What is known of the layers of `block`, on `device`; None if anything that is wanted is not.

        Raises:
            CorruptFile: the block's file is damaged.
        """
        file = self._file(block)
        if not file.is_file():
            return None
        entries = read_header(file)
        counts: dict[tuple[str, str], Collected] = {}
        stats: dict[str, LayerStats] = {}
        for layer in layers:
            collected: dict[Statistic, Collected] = {}
            for statistic in wants:
                owner = f"{layer.name}|{statistic.key}"
                if f"{owner}|owner" in entries:  # its sums stand with another layer
                    number = int(read_tensor(entries[f"{owner}|owner"]))
                    owner = f"{layers[number].name}|{statistic.key}"
                if f"{owner}|count" not in entries:
                    return None
                if (owner, statistic.key) not in counts:
                    sums = {
                        name.rpartition("|")[2]: read_tensor(entry).to(device)
                        for name, entry in entries.items()
                        if name.startswith(f"{owner}|") and not name.endswith(("|count", "|owner"))
                    }
                    count = int(read_tensor(entries[f"{owner}|count"]))
                    counts[owner, statistic.key] = Collected(statistic, count, sums or None)
                collected[statistic] = counts[owner, statistic.key]
            stats[layer.name] = LayerStats(layer, collected)
        return stats

    def put(self, block: str, stats: Mapping[str, LayerStats]) -> None:
        """Keeps what was collected of a block; what was there of it is replaced."""
        names = list(stats)
        tensors: dict[str, Tensor] = {}
        owners: dict[int, int] = {}
        for number, name in enumerate(names):
            for statistic, found in stats[name].collected.items():
                owner = owners.setdefault(id(found), number)
                prefix = f"{name}|{statistic.key}"
                if owner != number:
                    tensors[f"{prefix}|owner"] = torch.tensor(owner)
                    continue
                tensors[f"{prefix}|count"] = torch.tensor(found.count)
                for key, tensor in (found.sums or {}).items():
                    tensors[f"{prefix}|{key}"] = tensor
        with whole_file(self._file(block)) as temporary:
            write_file(temporary, tensors)
        save_json(self.folder / INDEX, {"key": self._key})

    def has_all(self, blocks: Sequence[str]) -> bool:
        """Whether there is a file for every one of `blocks`."""
        return all(self._file(block).is_file() for block in blocks)

    def _file(self, block: str) -> Path:
        return self.folder / f"{block or 'model'}.safetensors"
