"""A source whose structure is changed before anything is read of it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from laconic.models.edits import apply_edits
from laconic.models.source import ModelSource, structure_of


class EditedSource(ModelSource):
    """Another source after edits; tensors of what was dropped are gone.

    Args:
        source: which is not changed.
        edits: as `laconic.models.edits` replays them.
    """

    def __init__(self, source: ModelSource, edits: Sequence[Mapping[str, Any]]) -> None:
        self._source = source
        self.name, self.folder = source.name, source.folder
        self.skeleton = structure_of(source.skeleton)
        apply_edits(self.skeleton, edits)
        left = self.skeleton.state_dict()
        self._sizes = {name: size for name, size in source.sizes().items() if name in left}

    def sizes(self) -> dict[str, int]:
        return self._sizes

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        return self._source.read(names)

    def save_config(self, folder: Path, quantization: dict[str, Any]) -> None:
        self._source.save_config(folder, quantization)

    def fingerprint(self) -> str | None:
        return self._source.fingerprint()

    @property
    def dense_bytes(self) -> int:
        """Of the model before the edits: what was dropped counts as saved."""
        return self._source.dense_bytes
