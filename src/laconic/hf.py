"""Registers laconic with transformers.

After `import laconic.hf`, `AutoModel.from_pretrained` opens directories that laconic wrote, and
`save_pretrained` writes them again, byte for byte.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from laconic.errors import CorruptFile, UnsupportedModel, UsageError
from laconic.models.edits import apply_edits
from laconic.models.safetensors import read_headers
from laconic.models.sink import tie_heads
from laconic.tensors.replacement import materialise, replace_module, twin_class

METHOD = "laconic"
FORMAT = 1


def quantization_config(
    modules: list[str], recipe: list[dict[str, Any]], edits: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What `config.json` says of a compressed model.

    Args:
        modules: paths of the compressed modules.
        recipe: the methods that made it, in order, each with its settings.
        edits: changes of the structure, replayed before the weights are loaded.
    """
    config = {"quant_method": METHOD, "format": FORMAT, "modules": modules, "recipe": recipe}
    return config | ({"edits": list(edits)} if edits else {})


class LaconicConfig(QuantizationConfigMixin):
    """The `quantization_config` of a model that laconic compressed; see `quantization_config`."""

    def __init__(
        self, modules: list[str], recipe: list[dict[str, Any]], format: int = FORMAT,
        edits: Sequence[Mapping[str, Any]] = (), **_: Any,
    ) -> None:  # fmt: skip
        if format != FORMAT:
            raise CorruptFile(
                f"the model is of laconic format {format}, this laconic reads {FORMAT}: "
                "pip install -U laconic"
            )
        if not isinstance(modules, list) or any(not isinstance(path, str) for path in modules):
            raise CorruptFile(f"config.json: a list of modules expected, found {modules!r}")
        self.quant_method = METHOD
        self.format = format
        self.modules = modules
        self.recipe = recipe
        if edits:
            self.edits = list(edits)


class LaconicQuantizer(HfQuantizer):
    """Puts compressed modules into the empty model, then decodes what was loaded into them."""

    requires_calibration = True

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: Any = None
    ) -> list[Any]:
        """None: laconic's files use the names of the model in memory. Older versions give no `model`."""
        return []

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        try:
            apply_edits(model, getattr(self.quantization_config, "edits", ()))
        except (UsageError, UnsupportedModel) as error:
            raise CorruptFile(f"config.json: its edits do not fit the model: {error}") from error
        entries = read_headers(Path(file) for file in checkpoint_files or [])
        for name in [n for n in model.all_tied_weights_keys if n in entries]:
            model.all_tied_weights_keys.pop(name)  # stored on its own: it was not tied
        for path in self.quantization_config.modules:
            try:
                twin = twin_class(model.get_submodule(path))
            except AttributeError as error:
                raise CorruptFile(f"config.json names {path}, which the model has not") from error
            names = twin.slot_names if twin is not None else ("weight",)
            missing = [name for name in names if f"{path}.{name}" not in entries]
            if missing:
                raise CorruptFile(f"the weight files lack {path}.{missing[0]}")
            slots = {name: entries[f"{path}.{name}"].size for name in names}
            replace_module(model, path, slots)
        tie_heads(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        materialise(model)
        return model

    def is_serializable(self) -> bool:
        """Loaded models can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradients."""
        return False


def is_registered() -> bool:
    """Whether transformers knows laconic."""
    return METHOD in AUTO_QUANTIZER_MAPPING


def prepare_for_saving(model: nn.Module, config: dict[str, Any]) -> None:
    """Lets a model that was compressed in memory be written by its own `save_pretrained`."""
    quantizer = LaconicQuantizer(LaconicConfig(**config))
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    model.config.quantization_config = quantizer.quantization_config  # type: ignore[union-attr, assignment]
    model._weight_conversions = []  # type: ignore[assignment]


if not is_registered():
    register_quantization_config(METHOD)(LaconicConfig)
    register_quantizer(METHOD)(LaconicQuantizer)
