"""`compress` and `load` from end to end, and what is left when something goes wrong."""

import builtins
import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from laconic.calibrate.runner import run_layers
from laconic.compression import compress
from laconic.errors import (
    BadWeights,
    BudgetError,
    LaconicError,
    OutputExists,
    UnsupportedModel,
    UsageError,
)
from laconic.hf import quantization_config
from laconic.loading import load
from laconic.method import LayerMethod, Paper
from laconic.models.directory import DirectorySink
from laconic.models.huggingface import HuggingFaceSource
from laconic.planning import Plan
from laconic.quantize.rtn import RTN
from laconic.tensors.modules import CompressedModule
from tests.models.test_sink import tree
from tests.models.tiny import TINY

ALSO = {"blocks": (), "all": ("embeddings", "rest")}
RESNET = "laconic.zoo.resnet:resnet20"


@dataclass(frozen=True)
class Interrupted(LayerMethod):
    """RTN until a layer of the last block, then Control-C, or whatever else it is told."""

    error: str = "KeyboardInterrupt"
    paper = Paper(None, "", 2020)

    def compress_weight(self, weight, stats=None):
        CALLS.append(weight)
        if len(CALLS) == 12:
            raise getattr(builtins, self.error)("on purpose")
        return RTN().compress_weight(weight)


CALLS: list[torch.Tensor] = []


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("also", ALSO.values(), ids=ALSO)
@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("name", TINY)
def test_the_same_model_on_every_way(name, bits, also, tiny_models, tmp_path):
    """disk -> disk -> load  ==  in memory  ==  in memory -> save_pretrained -> load, to the bit."""
    tiny, method = TINY[name], RTN(bits=bits, group=16)
    compress(tiny_models[name], method, out=tmp_path / "disk", also=also)
    model = tiny.model()
    dense = tiny.logits(model)
    assert compress(model, method, also=also).model is model
    expected = tiny.logits(model)
    loaded = load(tmp_path / "disk")
    assert torch.equal(tiny.logits(loaded), expected)
    lost = (expected - dense).norm() / dense.norm()
    assert 0 < lost < {8: 0.05, 4: 0.7, 3: 1.2}[bits]
    loaded.save_pretrained(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "disk")
    model.save_pretrained(tmp_path / "memory")
    assert torch.equal(tiny.logits(load(tmp_path / "memory")), expected)
    if tiny.causal and bits == 4:
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        tokens = model.generate(**tiny.inputs(), **options)
        assert torch.equal(loaded.generate(**tiny.inputs(), **options), tokens)


@pytest.mark.parametrize("also", ALSO.values(), ids=ALSO)
def test_a_plain_module_from_a_factory(also, tmp_path):
    compress(RESNET, RTN(bits=8), out=tmp_path / "out", also=also)
    model = load(tmp_path / "out")
    compressed = {n for n, m in model.named_modules() if isinstance(m, CompressedModule)}
    assert len(compressed) == 18 + 2 + 2  # two in each block, two shortcuts, stem and classifier
    formats = {model.get_submodule(n).weight.format for n in ("conv1", "fc")}
    assert formats == ({"float32"} if not also else {"int8 row"})


@pytest.mark.parametrize("name", TINY)
def test_from_memory_to_disk(name, tiny_models, tmp_path):
    """A module with `out` stays as it is and gives the files that its directory gives."""
    model = TINY[name].model()
    before = TINY[name].logits(model)
    compress(model, RTN(group=16), out=tmp_path / "a")
    compress(tiny_models[name], RTN(group=16), out=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert torch.equal(TINY[name].logits(model), before)
    assert torch.equal(
        TINY[name].logits(load(tmp_path / "a")), TINY[name].logits(load(tmp_path / "b"))
    )


@pytest.mark.parametrize("name", TINY)
def test_shards(name, tiny_models, tmp_path):
    source, plan = HuggingFaceSource(tiny_models[name]), Plan.of([RTN(group=16)])

    def save_config(folder, modules):
        source.save_config(folder, quantization_config(modules, plan.recipe()))

    with DirectorySink(tmp_path / "shards", save_config, shard_bytes=6000) as sink:
        run_layers(source, sink, plan.steps)
    compress(tiny_models[name], RTN(group=16), out=tmp_path / "whole")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    logits = [TINY[name].logits(load(tmp_path / folder)) for folder in ("shards", "whole")]
    assert torch.equal(*logits)


def test_sharded_input(tmp_path, tiny_models):
    TINY["qwen3_moe"].model().save_pretrained(tmp_path / "in", max_shard_size="15KB")
    compress(tmp_path / "in", RTN(group=16), out=tmp_path / "a")
    compress(tiny_models["qwen3_moe"], RTN(group=16), out=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("also", ALSO.values(), ids=ALSO)
def test_names_are_those_in_memory_and_what_is_tied_is_stored_once(
    name, also, tiny_models, tmp_path
):
    compress(tiny_models[name], RTN(group=16), out=tmp_path / "out", also=also)
    state = load_file(tmp_path / "out" / "model.safetensors")
    model = TINY[name].model()
    assert set(state) == set(model.state_dict()) - set(model.all_tied_weights_keys)
    assert ("lm_head.weight" in state) == (TINY[name].causal and not TINY[name].tied)
    for path in json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"][
        "modules"
    ]:
        slots = ("gate_up_proj", "down_proj") if path.endswith("experts") else ("weight",)
        assert all(state[f"{path}.{slot}"].dtype == torch.uint8 for slot in slots)


def more_ties():
    """Models that tie more than a head: a bias, and the tables of encoder and decoder."""
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    bert = BertForMaskedLM(BertConfig(**sizes, hidden_size=32, intermediate_size=48))
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=50,
            d_model=32,
            d_ff=48,
            d_kv=8,
            num_layers=1,
            num_heads=4,
            pad_token_id=0,
            decoder_start_token_id=0,
            eos_token_id=1,
        )  # fmt: skip
    )
    ids = torch.randint(2, 50, (2, 5))
    return {"bert": (bert, {}), "t5": (t5, {"decoder_input_ids": ids})}, ids


@pytest.mark.parametrize("name", ["bert", "t5"])
@pytest.mark.parametrize("also", ALSO.values(), ids=ALSO)
def test_other_ties(name, also, tmp_path):
    models, ids = more_ties()
    model, more = models[name]
    model.eval().save_pretrained(tmp_path / "in")
    compress(tmp_path / "in", RTN(bits=8), out=tmp_path / "out", also=also)
    compress(model, RTN(bits=8), also=also)
    with torch.no_grad():
        expected = model(input_ids=ids, **more).logits
        loaded = load(tmp_path / "out")
        assert torch.equal(loaded(input_ids=ids, **more).logits, expected)
    loaded.save_pretrained(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_a_tied_checkpoint_whose_head_differs(tiny_models, tmp_path):
    """Transformers does not tie them, and neither does the compressed model."""
    from safetensors.torch import save_file

    folder = tmp_path / "in"
    TINY["qwen3"].model().save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].flip(0)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    expected = TINY["qwen3"].logits(load(folder))
    for also in ALSO.values():
        compress(folder, RTN(bits=8, group=8), out=tmp_path / "out", also=also, overwrite=True)
        found = TINY["qwen3"].logits(load(tmp_path / "out"))
        assert (found - expected).norm() < 0.05 * expected.norm()


class TestReport:
    def test_counts_are_those_of_the_file(self, tiny_models, tmp_path):
        source = HuggingFaceSource(tiny_models["qwen3_moe"])
        report = compress(tiny_models["qwen3_moe"], RTN(3, 16), out=tmp_path / "out").report
        file = tmp_path / "out" / "model.safetensors"
        assert report.stored_bytes == file.stat().st_size
        assert report.dense_bytes == source.dense_bytes
        assert report.kept == report.stored_bytes / report.dense_bytes
        touched = {la.parameter for block in source.blocks for la in block.layers}
        blobs = {k: v.numel() for k, v in load_file(file).items() if k in touched}
        weights = sum(la["weights"] for la in report.layers)
        assert report.bits_per_weight == pytest.approx(8 * sum(blobs.values()) / weights)
        loaded = load(tmp_path / "out")
        resident = sum(
            m.resident_bytes
            for m in loaded.modules()
            if isinstance(m, CompressedModule) and "int3" in repr(m)
        )
        assert report.resident_bits_per_weight == pytest.approx(8 * resident / weights)

    def test_in_memory_it_counts_what_saving_would_store(self, tmp_path):
        model = TINY["llama"].model()
        report = compress(model, RTN(group=16)).report
        model.save_pretrained(tmp_path)
        stored = (tmp_path / "model.safetensors").stat().st_size
        assert report.out is None and report.stored_bytes < stored < report.stored_bytes + 4000

    def test_is_json_and_names_what_was_done(self, tiny_models, tmp_path):
        report = compress(tiny_models["llama"], RTN(bits=8), out=tmp_path / "out").report
        values = json.loads(json.dumps(report.to_json()))
        assert (values["method"], values["settings"]["bits"]) == ("rtn", 8)
        assert values["out"] == str(tmp_path / "out") and values["model"] == str(
            tiny_models["llama"]
        )
        assert len(values["layers"]) == 14 and values["kind"] == "compression"
        assert values["seconds"] > 0 and values["peak_rss_bytes"] > 10**7

    def test_recipe_in_the_config(self, tiny_models, tmp_path):
        compress(tiny_models["llama"], RTN(bits=8), out=tmp_path / "out")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        entry = config["quantization_config"]
        assert entry["quant_method"] == "laconic"
        assert entry["recipe"] == [{"method": "rtn", "settings": RTN(bits=8).settings()}]

    def test_warns_of_layers_that_lost_most(self):
        model = nn.Sequential(nn.Linear(64, 8))
        nn.init.constant_(model[0].weight, 0.02)
        model[0].weight.data[:, 0] = 0.1
        warnings = compress(model, RTN(2, "row", range="minmax")).report.warnings
        assert any("layers lost more than half" in warning for warning in warnings)
        assert compress(nn.Sequential(nn.Linear(8, 8)), RTN(8)).report.warnings == []

    def test_side_files_come_along(self, tiny_models, tmp_path):
        import shutil

        folder = shutil.copytree(tiny_models["llama"], tmp_path / "in")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "LICENSE.md").write_text("free")
        (folder / "model.safetensors.index.json.bak").write_text("no")
        compress(folder, RTN(), out=tmp_path / "out")
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert {"tokenizer.json", "LICENSE.md", "generation_config.json", "config.json"} <= names
        assert "model.safetensors.index.json.bak" not in names


class TestBudget:
    @pytest.mark.parametrize("also", ALSO.values(), ids=ALSO)
    @pytest.mark.parametrize("budget", ["6bit", "7.5 bits"])
    def test_bits(self, budget, also, tiny_models, tmp_path):
        report = compress(
            tiny_models["llama"], RTN(), out=tmp_path / "out", budget=budget, also=also
        ).report
        asked = float(budget.removesuffix("bits").removesuffix("bit"))
        assert asked - 1.2 < report.bits_per_weight <= asked
        assert report.budget == budget
        load(tmp_path / "out")

    @pytest.mark.parametrize(
        ("budget", "also"),
        [("70%", ()), ("60%", ALSO["all"]), ("33 kB", ()), ("0.03MB", ALSO["all"]), ("32KiB", ())],
    )
    def test_shares_and_bytes_of_the_finished_file(self, budget, also, tiny_models, tmp_path):
        report = compress(
            tiny_models["llama"], RTN(), out=tmp_path / "out", budget=budget, also=also
        ).report
        from laconic.allocate.budget import Budget, Unit

        parsed = Budget.parse(budget)
        limit = parsed.amount * (report.dense_bytes if parsed.unit is Unit.SHARE else 1)
        stored = (tmp_path / "out" / "model.safetensors").stat().st_size
        assert 0.93 * limit < stored <= limit
        load(tmp_path / "out")

    @pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe"])
    @pytest.mark.parametrize("budget", ["70%", "6bit"])
    def test_in_memory(self, name, budget):
        model = TINY[name].model()
        report = compress(model, RTN(), budget=budget).report
        assert report.kept <= 0.7 if budget == "70%" else report.bits_per_weight <= 6
        TINY[name].logits(model)

    def test_a_file_that_misses_it_is_made_again_and_never_seen(
        self, tiny_models, tmp_path, monkeypatch
    ):
        """Estimates that are too low lead to further rounds; none of them is published."""
        published = []
        original = DirectorySink._publish
        monkeypatch.setattr(
            DirectorySink,
            "_publish",
            lambda sink: published.append(sink.finish()) or original(sink),
        )
        monkeypatch.setattr("laconic.probing.HEADER_BYTES", 40)
        out = tmp_path / "out"
        report = compress(tiny_models["llama"], RTN(), out=out, budget="70%").report
        assert published == [report.stored_bytes] and report.kept <= 0.7

    @pytest.mark.parametrize("out", [True, False])
    def test_misses_it_for_good(self, tiny_models, tmp_path, monkeypatch, out):
        monkeypatch.setattr("laconic.probing.HEADER_BYTES", -300)
        monkeypatch.setattr("laconic.job.Job._untouched_bytes", lambda *_: 10**6)
        model = TINY["llama"].model()
        before = TINY["llama"].logits(model)
        with pytest.raises(BudgetError, match="cannot be reached|missed"):
            compress(model, RTN(), out=tmp_path / "out" if out else None, budget="44%")
        assert list(tmp_path.iterdir()) == []
        assert torch.equal(TINY["llama"].logits(model), before)

    def test_unreachable_leaves_nothing(self, tiny_models, tmp_path):
        with pytest.raises(BudgetError, match="cannot be reached"):
            compress(tiny_models["llama"], RTN(), out=tmp_path / "out", budget="1bit")
        assert list(tmp_path.iterdir()) == []

    def test_recipe_says_who_got_what(self, tiny_models, tmp_path):
        compress(tiny_models["llama"], RTN(), out=tmp_path / "out", budget="6bit")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        (entry,) = config["quantization_config"]["recipe"]
        assert len(entry["layers"]) == 14
        model = load(tmp_path / "out")
        for name, settings in entry["layers"].items():
            assert model.get_submodule(name).weight.bits == settings["bits"]


class TestFailures:
    """Whatever happens, there is the old state or the new one, and nothing beside."""

    @pytest.fixture(params=[False, True], ids=["new", "overwrite"])
    def place(self, request, tiny_models, tmp_path):
        """(folder of `out`, `out`, options, what must still be there)."""
        out = tmp_path / "place" / "out"
        out.parent.mkdir()
        if request.param:
            compress(tiny_models["llama"], RTN(bits=8), out=out)
        return out, {"out": out, "overwrite": request.param}, tree(out.parent)

    def damaged(self, tmp_path):
        model = TINY["llama"].model()
        model.model.layers[1].mlp.down_proj.weight.data[3, 5] = float("nan")
        model.save_pretrained(tmp_path / "damaged")
        return tmp_path / "damaged"

    def test_exists(self, tiny_models, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(OutputExists, match="overwrite"):
            compress(tiny_models["llama"], Interrupted(), out=tmp_path / "out")
        assert not CALLS, "it is known before the work"

    def test_damaged_weights_name_the_tensor(self, tmp_path, place):
        out, options, before = place
        folder = self.damaged(tmp_path)
        with pytest.raises(
            BadWeights, match=r"model\.layers\.1\.mlp\.down_proj\.weight holds nan at \[3, 5\]"
        ):
            compress(folder, RTN(), **options)
        assert tree(out.parent) == before

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
    def test_interrupted(self, tiny_models, place, error):
        out, options, before = place
        with pytest.raises(error):
            compress(tiny_models["llama"], Interrupted(error.__name__), **options)
        assert len(CALLS) >= 12 and tree(out.parent) == before  # other threads may have begun more

    def test_disk_full(self, tiny_models, place, monkeypatch):
        out, options, before = place

        def full(path, tensors):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("laconic.models.directory.write_file", full)
        with pytest.raises(LaconicError, match="disk is full; nothing was left behind"):
            compress(tiny_models["llama"], RTN(), **options)
        assert tree(out.parent) == before

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_in_memory_the_model_is_as_it_was(self, error):
        model = TINY["qwen3"].model()
        before = TINY["qwen3"].logits(model)
        with pytest.raises(error):
            compress(model, Interrupted(error.__name__), also=["embeddings"])
        assert torch.equal(TINY["qwen3"].logits(model), before)
        assert not any(isinstance(m, CompressedModule) for m in model.modules())
        assert model.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
        compress(model, RTN())

    def test_plain_modules_without_a_factory_are_refused_before_the_work(self, tmp_path):
        with pytest.raises(UsageError, match="factory"):
            compress(nn.Sequential(nn.Linear(4, 4)), Interrupted(), out=tmp_path / "out")
        assert not CALLS and list(tmp_path.iterdir()) == []

    def test_a_model_on_disk_needs_an_out(self, tiny_models):
        with pytest.raises(UsageError, match="out="):
            compress(tiny_models["llama"], RTN())

    def test_compressed_already(self, tiny_models, tmp_path):
        compress(tiny_models["llama"], RTN(), out=tmp_path / "a")
        with pytest.raises(UnsupportedModel, match="compressed already"):
            compress(tmp_path / "a", RTN(), out=tmp_path / "b")
        model = load(tmp_path / "a")
        with pytest.raises(UnsupportedModel, match="compressed already"):
            compress(model, RTN(), out=tmp_path / "b")
        compress(RESNET, RTN(), out=tmp_path / "c")
        with pytest.raises(UnsupportedModel, match="compressed already"):
            compress(tmp_path / "c", RTN(), out=tmp_path / "b")
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("methods", [[], ["rtn"], [RTN(), "rtn"]])
    def test_no_chain_of_methods(self, methods):
        with pytest.raises(UsageError, match="expected a method, or a chain"):
            compress(nn.Sequential(nn.Linear(4, 4)), methods)


def test_large_weights_that_no_layer_holds_are_reported():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(16, 16)
            self.table = torch.nn.Parameter(torch.randn(16, 16))

    model = torch.nn.Sequential(torch.nn.ModuleList([Block(), Block()]))
    warnings = compress(model, RTN()).report.warnings
    assert any("2 large matrices" in text and "0.0.table" in text for text in warnings)
