"""Whole runs with data: what methods are given, and that nothing but the data decides."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from laconic.calibrate.calibration import Calibration, read_calibration
from laconic.calibrate.inputs import Subject
from laconic.calibrate.options import RunOptions
from laconic.compression import compress
from laconic.errors import DataError, LaconicError, UsageError
from laconic.loading import load
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense
from laconic.tensors.transforms import ChannelScale
from tests.calibrate.chains import Crossed, Halves, Scale, Taylor, Weighted
from tests.calibrate.test_collect import sequences
from tests.models.tiny import TINY


def data(name, count=10):
    draw = torch.Generator().manual_seed(3)
    if name == "vit":
        rows = [{"pixel_values": torch.randn(1, 3, 16, 16, generator=draw)} for _ in range(count)]
    else:
        rows = [{"input_ids": torch.randint(4, 160, (1, 24), generator=draw)} for _ in range(count)]
    return rows


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", TINY)
def test_every_architecture(name, tiny_models, tmp_path):
    report = compress(
        tiny_models[name], GPTQ(bits=3, group=16), data(name), out=tmp_path / "a"
    ).report
    plain = compress(tiny_models[name], RTN(bits=3, group=16), out=tmp_path / "b").report
    assert len(report.layers) == len(plain.layers)
    assert all(row["tokens"] > 0 for row in report.layers)
    model = load(tmp_path / "a")
    logits = TINY[name].logits(model)
    assert logits.isfinite().all()
    memory = TINY[name].model()
    compress(memory, GPTQ(bits=3, group=16), data(name))
    assert torch.equal(TINY[name].logits(memory), logits)


def test_feedback_loses_less_than_rounding_on_inputs_that_it_was_not_fitted_to(
    tiny_models, tmp_path
):
    def error(method):
        rows = compress(
            tiny_models["llama"], method, Calibration(tuple(data("llama", 40)), None, range(30), range(30, 40)),
            out=tmp_path / type(method).__name__,
        ).report.layers  # fmt: skip
        return sum(row["error"] for row in rows)

    assert error(GPTQ(bits=3, group="row")) < 0.8 * error(Weighted(bits=3))


class TestChains:
    def test_what_follows_a_transform_sees_transformed_inputs(self):
        model = TINY["llama"].model().float()
        report = compress(model, [Scale(), Weighted(bits=8)], data("llama")).report
        assert report.method == "Scale + Weighted" and set(report.settings) == {"Scale", "Weighted"}
        for row in report.layers:
            assert any(note.startswith(("energy 1.0", "energy 0.9")) for note in row["notes"])
        layer = model.model.layers[0].mlp.up_proj
        assert isinstance(layer.records["weight"].transform, ChannelScale)
        assert sum(row["error"] for row in report.layers) < 0.01

    def test_blocks_and_layers(self):
        model = TINY["gpt2"].model()
        before = model.transformer.h[0].mlp.c_fc.weight.clone()
        compress(model, [Halves(), Crossed()], data("gpt2"))
        assert model.transformer.h[0].mlp.c_fc.weight.shape == before.T.shape

    def test_cross_moments_of_a_dense_prefix_change_nothing(self):
        model = TINY["llama"].model().float()
        before = TINY["llama"].logits(model)
        compress(model, Crossed(), data("llama", 60))
        torch.testing.assert_close(TINY["llama"].logits(model), before, rtol=0.1, atol=0.3)

    def test_gradients(self):
        model = TINY["opt"].model()
        report = compress(model, Taylor(), data("opt")).report
        kept = [
            (m.weight.dense() != 0).float().mean()
            for n, m in model.named_modules()
            if n.endswith("fc1")
        ]
        assert all(0.45 < share < 0.6 for share in kept) and len(report.layers) == 12


class TestOptions:
    def run(self, tmp_path, tiny_models, name="llama", method=None, **options):
        out = tmp_path / "-".join(map(str, options.values()))
        compress(tiny_models[name], method or GPTQ(bits=3, group=16), data(name), out=out,
                 options=RunOptions(**options))  # fmt: skip
        return weights(out)

    def test_inputs_and_order_matter(self, tiny_models, tmp_path):
        files = {
            self.run(tmp_path, tiny_models, inputs=i, order=o)
            for i in ("compressed", "dense") for o in ("block", "layer")
        }  # fmt: skip
        assert len(files) == 4

    @pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
    def test_threads_and_batches_do_not(self, name, tiny_models, tmp_path):
        files = set()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            try:
                for batch in (1, 8):
                    out = tmp_path / f"{threads}-{batch}"
                    compress(tiny_models[name], GPTQ(bits=3, group=16), data(name), out=out,
                             options=RunOptions(batch=batch))  # fmt: skip
                    files.add(weights(out))
            finally:
                torch.set_num_threads(1)
        assert len(files) == 1

    @pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
    def test_one_input_at_a_time_touches_every_layer(self, name, tiny_models, tmp_path):
        options = RunOptions(order="layer")
        report = compress(
            tiny_models[name], GPTQ(), data(name), out=tmp_path / "o", options=options
        ).report
        assert all(row["format"].startswith("int4") for row in report.layers)

    def test_layers_outside_the_blocks(self, tiny_models, tmp_path):
        report = compress(
            tiny_models["llama"],
            GPTQ(),
            data("llama"),
            out=tmp_path / "o",
            also=["embeddings", "rest"],
        ).report
        rows = {row["name"]: row for row in report.layers}
        assert rows["lm_head"]["tokens"] == 8 * 24
        assert any("looked up" in note for note in rows["model.embed_tokens"]["notes"])

    def test_a_budget_is_spread_by_the_error_on_data(self, tiny_models, tmp_path):
        report = compress(
            tiny_models["llama"], Weighted(), data("llama"), out=tmp_path / "o", budget="6bit"
        ).report
        assert report.bits_per_weight <= 6 and len({row["format"] for row in report.layers}) > 1


class TestLibrary:
    def test_statistics_are_used_again(self, tiny_models, tmp_path, monkeypatch):
        options, folder = RunOptions(inputs="dense"), tmp_path / "stats"
        made = {}
        for run in ("first", "second", "without"):
            statistics = None if run == "without" else folder
            compress(tiny_models["qwen3_moe"], GPTQ(), data("qwen3_moe"), out=tmp_path / run,
                     options=options, statistics=statistics)  # fmt: skip
            made[run] = weights(tmp_path / run)
            if run == "first":
                monkeypatch.setattr("laconic.calibrate.block_pass.collect", None)
            if run == "second":
                monkeypatch.undo()
        assert made["first"] == made["second"] == made["without"]
        assert len(list(folder.glob("*.safetensors"))) == 2

    def test_a_later_stage_collects_its_own(self, tiny_models, tmp_path):
        made = []
        for statistics in (tmp_path / "stats", tmp_path / "stats", None):
            report = compress(
                tiny_models["llama"], [Scale(), Weighted()], data("llama"),
                out=tmp_path / str(len(made)), options=RunOptions(inputs="dense"),
                statistics=statistics,
            ).report  # fmt: skip
            made.append(report.layers)
        assert made[0] == made[1] == made[2]
        assert made[0][0]["notes"] == ("energy 1.0000",)

    def test_of_other_data_are_refused(self, tiny_models, tmp_path):
        options, folder = RunOptions(inputs="dense"), tmp_path / "stats"
        compress(tiny_models["llama"], GPTQ(), data("llama"), out=tmp_path / "a", options=options,
                 statistics=folder)  # fmt: skip
        with pytest.raises(UsageError, match="another model or of other data"):
            compress(tiny_models["llama"], GPTQ(), data("llama", 9), out=tmp_path / "b",
                     options=options, statistics=folder)  # fmt: skip

    def test_only_of_dense_inputs(self, tiny_models, tmp_path):
        with pytest.raises(UsageError, match="inputs dense"):
            compress(
                tiny_models["llama"], GPTQ(), data("llama"), out=tmp_path / "a", statistics=tmp_path
            )


class TestStarved:
    def test_experts_that_no_token_reaches(self, tmp_path):
        model = TINY["qwen3_moe"].model()
        few = [{"input_ids": torch.tensor([[5, 9]])}, {"input_ids": torch.tensor([[7]])}]
        report = compress(model, GPTQ(bits=4, group=8), few).report
        starved = [row for row in report.layers if any("starved" in note for note in row["notes"])]
        assert starved and all("experts" in row["name"] for row in starved)
        assert any("starved: 0 positions for" in row["notes"][0] for row in starved)
        assert any("starved" in text for text in report.notes) and not report.warnings


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_workers_make_the_same_bytes(workers, tiny_models, tmp_path):
    ray = pytest.importorskip("ray")
    from laconic.calibrate.ray_farm import RayFarm

    farm = RayFarm(workers)
    try:
        compress(tiny_models["llama"], GPTQ(bits=3, group=16), data("llama"), out=tmp_path / "far",
                 options=RunOptions(farm=farm))  # fmt: skip
    finally:
        farm.close()
    assert not ray.is_initialized()
    compress(tiny_models["llama"], GPTQ(bits=3, group=16), data("llama"), out=tmp_path / "near")
    assert weights(tmp_path / "far") == weights(tmp_path / "near")


SCRIPT = """
import sys, time, torch
from laconic.compression import compress
from laconic.quantize.gptq import GPTQ
from tests.calibrate.test_calibrated import data
from tests.calibrate import slow
torch.set_num_threads(1)
compress(sys.argv[1], slow.Slow(bits=3, group=16), data("llama"), out=sys.argv[2])
"""


class TestKilled:
    @pytest.fixture
    def killed(self, tiny_models, tmp_path):
        """A run that died in its second block; where it wrote."""
        out = tmp_path / "out"
        run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tiny_models["llama"]), str(out)])
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out.partial-*/progress.json")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert not out.exists()
        return out

    def test_goes_on_to_the_same_bytes(self, killed, tiny_models, tmp_path):
        from tests.calibrate.slow import CALLS, Slow

        CALLS.clear()
        compress(tiny_models["llama"], Slow(bits=3, group=16), data("llama"), out=killed)
        assert len(CALLS) == 7  # the first block's seven layers are not done again
        compress(
            tiny_models["llama"], Slow(bits=3, group=16), data("llama"), out=tmp_path / "whole"
        )
        assert weights(killed) == weights(tmp_path / "whole")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
        assert sorted(p.name for p in killed.iterdir()) == sorted(
            p.name for p in (tmp_path / "whole").iterdir()
        )

    def test_another_job_does_not_take_it_over(self, killed, tiny_models, tmp_path):
        compress(tiny_models["llama"], RTN(bits=3), out=killed)
        compress(tiny_models["llama"], RTN(bits=3), out=tmp_path / "whole")
        assert weights(killed) == weights(tmp_path / "whole")

    def test_a_damaged_rest_is_begun_again(self, killed, tiny_models, tmp_path):
        from tests.calibrate.slow import Slow

        (work,) = tmp_path.glob(".out.partial-*")
        for piece in work.glob("piece-*"):
            piece.write_bytes(piece.read_bytes()[:100])
        compress(tiny_models["llama"], Slow(bits=3, group=16), data("llama"), out=killed)
        compress(
            tiny_models["llama"], Slow(bits=3, group=16), data("llama"), out=tmp_path / "whole"
        )
        assert weights(killed) == weights(tmp_path / "whole")


class TestReading:
    @pytest.fixture
    def subject(self):
        return Subject(TINY["llama"].model(), None)

    def test_windows_texts_and_mappings(self, subject):
        windows = torch.randint(4, 160, (20, 16))
        read = read_calibration(windows, subject, fitted=12, held_out=4)
        assert (
            len(read.inputs) == 16 and read.fitted == range(12) and read.held_out == range(12, 16)
        )
        assert torch.equal(read.inputs[3]["input_ids"], windows[3:4])
        rows = read_calibration(iter(windows), subject, fitted=12, held_out=4)
        assert rows.fingerprint == read.fingerprint
        assert read_calibration(read, subject) is read
        few = read_calibration(windows[:5], subject)
        assert few.fitted == range(4) and few.held_out == range(4, 5)
        assert read_calibration(windows[:2], subject).held_out == range(2, 2)

    def test_nothing(self, subject):
        with pytest.raises(DataError, match="no calibration sequences"):
            read_calibration([], subject)
        with pytest.raises(UsageError, match="no tokenizer"):
            read_calibration(["a text"], subject)

    def test_labelled_sentences_are_cut_to_their_own_length(self):
        from laconic.calibrate.data import Labelled

        ids = torch.randint(4, 160, (6, 9))
        mask = (torch.arange(9) < torch.tensor([[9], [4], [6], [1], [9], [2]])).long()
        labelled = Labelled({"input_ids": ids, "attention_mask": mask}, torch.arange(6) % 2)
        read = read_calibration(labelled, Subject(TINY["bert"].model(), None), fitted=4, held_out=2)
        assert [r["input_ids"].shape[1] for r in read.inputs] == [9, 4, 6, 1, 9, 2]
        assert torch.equal(read.targets, labelled.labels)

    def test_images(self):
        images = list(torch.randn(3, 3, 16, 16))
        read = read_calibration(images, Subject(TINY["vit"].model(), None))
        assert read.inputs[0]["pixel_values"].shape == (1, 3, 16, 16)

    def test_methods_that_need_data_say_so(self, tiny_models, tmp_path):
        with pytest.raises(DataError, match="needs calibration data .*give --data"):
            compress(tiny_models["llama"], GPTQ(), out=tmp_path / "o")
        assert list(tmp_path.iterdir()) == []


class TestEdits:
    def test_dropped_parts_stay_dropped(self, tiny_models, tmp_path):
        from laconic.allocate.evopress import EvoPressDepth

        method = EvoPressDepth(remove=0.5, unit="sublayer", generations=1, offspring=2, tokens=64)
        report = compress(
            tiny_models["llama"], [method, RTN(bits=8)], data("llama"), out=tmp_path / "o"
        ).report
        assert report.method == "evopress-depth + rtn" and len(report.layers) == 7
        model = load(tmp_path / "o")
        x = {"input_ids": torch.randint(4, 160, (1, 6))}
        with torch.no_grad():
            whole = model.generate(**x, max_new_tokens=5, do_sample=False)
            plain = model.generate(**x, max_new_tokens=5, do_sample=False, use_cache=False)
        assert torch.equal(whole, plain)
        model.save_pretrained(tmp_path / "again")
        assert weights(tmp_path / "again") == weights(tmp_path / "o")
        memory = TINY["llama"].model()
        compress(memory, [method, RTN(bits=8)], data("llama"))
        assert torch.equal(TINY["llama"].logits(memory), TINY["llama"].logits(model))

    def test_edits_that_do_not_fit(self, tiny_models, tmp_path):
        import json

        from laconic.allocate.evopress import EvoPressDepth

        method = EvoPressDepth(remove=0.5, unit="block", generations=1, offspring=2, tokens=64)
        compress(tiny_models["llama"], method, data("llama"), out=tmp_path / "o")
        file = tmp_path / "o" / "config.json"
        config = json.loads(file.read_text())
        config["quantization_config"]["edits"][0]["module"] = "model.layers.77"
        file.write_text(json.dumps(config))
        with pytest.raises(LaconicError, match="edits"):
            load(tmp_path / "o")


def test_blocks_that_are_no_chain():
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).eval()
    report = compress(model, GPTQ(bits=4), [{"x": torch.randn(40, 16)} for _ in range(6)]).report
    assert all(row["tokens"] == 5 * 40 for row in report.layers)
    assert not isinstance(model[0].weight, Dense)


def test_sequences_of_other_lengths():
    model = TINY["llama"].model()
    assert compress(model, GPTQ(), sequences("llama", 6)).report.layers
