"""What laconic uses of the inside of transformers, one test for each thing.

When one fails after an upgrade, `laconic/hf.py`, `laconic/models/huggingface.py` or
`laconic/tensors/modules.py` needs a look; the end-to-end tests say whether anything is wrong.
"""

import inspect

import pytest
import torch
from torch import nn

from tests.models.tiny import TINY


def parameters(function):
    return set(inspect.signature(function).parameters)


class TestQuantizers:
    def test_registration(self):
        from transformers.quantizers import (  # noqa: F401
            HfQuantizer,
            register_quantization_config,
            register_quantizer,
        )
        from transformers.quantizers.auto import (
            AUTO_QUANTIZATION_CONFIG_MAPPING,
            AUTO_QUANTIZER_MAPPING,
        )

        import laconic.hf

        assert AUTO_QUANTIZER_MAPPING["laconic"] is laconic.hf.LaconicQuantizer
        assert AUTO_QUANTIZATION_CONFIG_MAPPING["laconic"] is laconic.hf.LaconicConfig

    @pytest.mark.parametrize(
        "name",
        [
            "update_weight_conversions", "_process_model_before_weight_loading",
            "_process_model_after_weight_loading", "is_serializable", "is_trainable",
            "requires_calibration",
        ],
    )  # fmt: skip
    def test_hooks_that_are_overridden(self, name):
        """A hook of another name would be ours alone, and never be called."""
        from transformers.quantizers import HfQuantizer

        import laconic.hf

        assert hasattr(HfQuantizer, name)
        ours, theirs = getattr(laconic.hf.LaconicQuantizer, name), getattr(HfQuantizer, name)
        if callable(ours):
            assert parameters(theirs) - {"kwargs"} <= parameters(ours) | {"kwargs"}

    def test_order_of_the_hooks(self, tiny_models, tmp_path, monkeypatch):
        """Before: on the meta device, with the files' names; after: with everything loaded."""
        import laconic.hf
        from laconic.compression import compress
        from laconic.loading import load
        from laconic.quantize.rtn import RTN

        seen = []
        cls = laconic.hf.LaconicQuantizer
        before, after = (
            cls._process_model_before_weight_loading,
            cls._process_model_after_weight_loading,
        )

        def watch_before(self, model, checkpoint_files=None, **kwargs):
            seen.append(({p.device.type for p in model.parameters()}, list(checkpoint_files)))
            return before(self, model, checkpoint_files=checkpoint_files, **kwargs)

        def watch_after(self, model, **kwargs):
            seen.append({t.device.type for t in [*model.parameters(), *model.buffers()]})
            return after(self, model, **kwargs)

        monkeypatch.setattr(cls, "_process_model_before_weight_loading", watch_before)
        monkeypatch.setattr(cls, "_process_model_after_weight_loading", watch_after)
        compress(tiny_models["llama"], RTN(), out=tmp_path / "out")
        load(tmp_path / "out")
        assert seen == [({"meta"}, [str(tmp_path / "out" / "model.safetensors")]), {"cpu"}]


class TestCheckpoints:
    def test_conversions(self):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(TINY["qwen3_moe"].model())
        assert isinstance(mapping, list)
        assert all(isinstance(entry, WeightRenaming | WeightConverter) for entry in mapping)
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        assert converters, "experts are fused by converters"
        for converter in converters:
            assert converter.source_patterns and converter.target_patterns
            assert parameters(converter.add_tensor) == {
                "target_key", "source_key", "source_pattern", "future",
            }  # fmt: skip
            assert {"model", "config"} <= parameters(converter.convert)

    def test_renaming(self):
        from transformers.core_model_loading import dot_natural_key, rename_source_key

        assert list(inspect.signature(rename_source_key).parameters)[:5] == [
            "source_key", "weight_renamings", "weight_converters", "base_model_prefix",
            "meta_state_dict",
        ]  # fmt: skip
        assert rename_source_key("a.weight", [], [], None, {}) == ("a.weight", None)
        assert sorted(["a.10", "a.9"], key=dot_natural_key) == ["a.9", "a.10"]

    def test_saving_asks_for_conversions_to_revert(self):
        """prepare_for_saving sets it to none, so that blobs keep their names."""
        from transformers import core_model_loading

        source = inspect.getsource(core_model_loading.revert_weight_conversion)
        assert '"_weight_conversions"' in source

    def test_loading_info(self, tiny_models):
        from transformers import AutoModelForCausalLM

        _, info = AutoModelForCausalLM.from_pretrained(
            tiny_models["llama"], output_loading_info=True
        )
        assert info["missing_keys"] == set()


class TestModels:
    @pytest.mark.parametrize("name", TINY)
    def test_tied_weights(self, name):
        ties = TINY[name].model().all_tied_weights_keys
        assert isinstance(ties, dict) and bool(ties) == TINY[name].tied
        for tied, source in ties.items():
            assert tied == "lm_head.weight" and source.endswith(".weight")

    @pytest.mark.parametrize("name", TINY)
    def test_block_lists_are_where_the_table_says(self, name):
        from laconic.models.layout import BLOCK_LISTS

        model = TINY[name].model()
        path = BLOCK_LISTS[model.config.model_type]
        assert isinstance(model.get_submodule(path), nn.ModuleList)
        assert len(model.get_submodule(path)) == 2

    def test_conv1d_keeps_its_weight_turned(self):
        from transformers.pytorch_utils import Conv1D

        from laconic.tensors.modules import is_conv1d

        layer = Conv1D(7, 5)
        assert is_conv1d(layer) and layer.weight.shape == (5, 7)

    def test_fused_experts(self):
        from laconic.tensors.replacement import is_experts

        experts = TINY["qwen3_moe"].model().model.layers[0].mlp.experts
        assert is_experts(experts)
        assert experts.gate_up_proj.shape == (4, 48, 32) and experts.down_proj.shape == (4, 32, 24)
        forward = inspect.unwrap(type(experts).forward)
        assert list(inspect.signature(forward).parameters) == [
            "self", "hidden_states", "top_k_index", "top_k_weights",
        ]  # fmt: skip

    def test_padding_of_convolutions(self):
        """Torch's, not transformers': other paddings than zeros are a step of their own."""
        layer = nn.Conv2d(1, 1, 3, padding=(1, 2), padding_mode="reflect")
        assert list(layer._reversed_padding_repeated_twice) == [2, 2, 1, 1]

    def test_positions_with_an_offset_are_a_class_of_their_own(self):
        positions = TINY["opt"].model().model.decoder.embed_positions
        assert isinstance(positions, nn.Embedding) and type(positions) is not nn.Embedding

    def test_models_are_built_on_the_meta_device(self):
        cls, config = TINY["llama"].build()
        with torch.device("meta"):
            model = cls(config)
        assert {p.device.type for p in model.parameters()} == {"meta"}
