"""What a model says that it was made of.

Its bits say more (`sketches`), but only of models whose tensors have the same names and shapes: not of one that was given
another head.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from laconic.store.index import Index, Model

LARGEST = 1 << 20  # bytes of a file that may say it


def declared_base(inputs: Sequence[tuple[str, Path]], index: Index) -> Model | None:
    """The newest revision of the model that `config.json` or the model card names, if the index has it.

    Names are compared whole, or by what follows the last slash where only one model has that.
    """
    for name in _declared(dict(inputs)):
        models = index.models(name)
        if not models:
            last = name.rstrip("/").rpartition("/")[2]
            models = [m for m in index.models() if m.name.rpartition("/")[2] == last]
        if len({model.name for model in models}) == 1:
            return models[-1]
    return None


def _declared(files: dict[str, Path]) -> list[str]:
    """Names of models, as far as they are told."""
    told: list[object] = []
    config = _text(files.get("config.json"))
    adapter = _text(files.get("adapter_config.json"))
    card = _text(files.get("README.md"))
    try:
        told.append(json.loads(config).get("_name_or_path") if config else None)
        told.append(json.loads(adapter).get("base_model_name_or_path") if adapter else None)
    except (ValueError, AttributeError, RecursionError):  # no such file is needed
        pass
    if card.startswith("---"):
        try:
            front = yaml.safe_load(card.split("---")[1])
        except (yaml.YAMLError, RecursionError):
            front = None
        named = front.get("base_model") if isinstance(front, dict) else None
        told += named if isinstance(named, list) else [named]
    return [name for name in told if isinstance(name, str) and name]


def _text(path: Path | None) -> str:
    if path is None or path.stat().st_size > LARGEST:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
