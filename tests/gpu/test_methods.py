"""Every method on a CUDA device: as good as on the CPU, and its files open on both."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from laconic.calibrate.options import RunOptions
from laconic.compression import compress
from laconic.loading import load
from laconic.quantize.activations import Activations
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.registry import ENTRIES
from laconic.zoo.resnet import resnet20
from tests.calibrate.chains import Halves, Scale, Taylor, Weighted
from tests.calibrate.test_calibrated import data
from tests.contracts.cases import METHODS
from tests.gpu.near import assert_near
from tests.models.tiny import TINY

ALL = [(name, settings) for name, variants in METHODS.items() for settings in variants[:2]]
SEARCHES = ("evopress", "evopress-depth")  # may find another of nearly equal plans
IMAGES = [
    {"x": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(n))} for n in range(5)
]


def made(name, **settings):
    return ENTRIES[name].load()(**settings)


def loss(model, name):
    """Of guessing the next token, where one can."""
    inputs = {k: v.to(next(model.parameters()).device) for k, v in TINY[name].inputs().items()}
    with torch.no_grad():
        logits = model(**inputs).logits.float().cpu()
    if "input_ids" not in inputs or logits.ndim < 3:
        return float(logits.logsumexp(-1).mean())
    return float(
        F.cross_entropy(
            logits[:, :-1].flatten(0, 1), TINY[name].inputs()["input_ids"][:, 1:].flatten()
        )
    )


def both(method, tiny_models, tmp_path, device, name="qwen3", **settings):
    """The reports of runs on the device and on the CPU, and where they wrote."""
    options = settings.pop("options", {})
    found = []
    for number, place in enumerate((device, "cpu")):
        out = tmp_path / f"{number}"
        given = data(name) if settings.get("with_data", True) else None
        rest = {k: v for k, v in settings.items() if k != "with_data"}
        run = RunOptions(device=place, **options)
        found.append(
            (compress(tiny_models[name], method, given, out=out, options=run, **rest).report, out)
        )
    return found


def compare(found, device, name="qwen3", size=0.05, error=0.15, near=0.05):
    (ours, there), (theirs, here) = found
    if "ecgptq" not in ours.method:  # whose farthest code says how many bits it has in memory
        assert [r["format"] for r in ours.layers] == [r["format"] for r in theirs.layers]
    assert ours.stored_bytes == pytest.approx(theirs.stored_bytes, rel=size)
    lost = [sum(row["error"] for row in report.layers) for report in (ours, theirs)]
    assert lost[0] == pytest.approx(lost[1], rel=error, abs=1e-3)
    losses = [loss(load(folder, dtype=torch.float32), name) for folder in (there, here)]
    assert losses[0] == pytest.approx(losses[1], abs=near)
    opens_on_both(there, device, name)


def opens_on_both(folder, device, name="qwen3"):
    """A file computes the same wherever it is opened."""
    wide = {"dtype": torch.float32}  # in which nothing but rounding differs
    losses = [loss(load(folder, **wide, device=place), name) for place in (device, "cpu")]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
    there = load(folder, device=device)
    assert {p.device.type for p in there.parameters()} == {torch.device(device).type}
    if TINY[name].causal:
        prompt = TINY[name].inputs()["input_ids"].to(device)
        out = there.generate(input_ids=prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert out.device.type == torch.device(device).type and out.shape[1] > prompt.shape[1]


@pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c[0]}-{'-'.join(map(str, c[1].values()))}")
def test_every_method(device, case, tiny_models, tmp_path):
    name, settings = case
    if name in SEARCHES:
        settings = {"generations": 1, "offspring": 3, **settings}
        settings |= {"remove": 0.5} if name == "evopress-depth" else {"method": "rtn:range=minmax"}
    method = made(name, **settings)
    found = both(method, tiny_models, tmp_path, device)
    if name in SEARCHES:
        (ours, there), (theirs, _) = found
        assert ours.stored_bytes == pytest.approx(theirs.stored_bytes, rel=0.1)
        opens_on_both(there, device)
    else:
        compare(found, device)


CHAINS = {
    "smoothquant, gptq": [("smoothquant", {"alpha": 0.6}), ("gptq", {"bits": 4})],
    "hadamard, gptq": [("hadamard", {}), ("gptq", {"bits": 4, "group": 16})],
    "activations, awq": [("activations", {"range": "static"}), ("awq", {"grid": 3})],
    "hadamard, activations, rtn": [("hadamard", {}), ("activations", {"bits": 4, "format": "mxfp"}), ("rtn", {})],
    "sparsegpt, ecgptq": [("sparsegpt", {"pattern": "2:4"}), ("ecgptq", {"bits": 2.0})],
    "wanda, gptq": [("wanda", {}), ("gptq", {"bits": 3})],
    "evopress-depth, rtn": [("evopress-depth", {"remove": 0.5, "generations": 1, "offspring": 2}), ("rtn", {})],
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chains(device, name, tiny_models, tmp_path):
    chain = [made(link, **settings) for link, settings in CHAINS[name]]
    found = both(chain, tiny_models, tmp_path, device)
    compare(found, device) if "evopress" not in name else opens_on_both(found[0][1], device)


@pytest.mark.parametrize("name", [name for name in TINY if name != "qwen3"])
def test_every_architecture(device, name, tiny_models, tmp_path):
    """GPT-2's Conv1D, fused experts, positions of OPT, encoders, images; in bf16 and fp16 too."""
    found = both(GPTQ(bits=4, group=16), tiny_models, tmp_path, device, name)
    compare(found, device, name)


@pytest.mark.parametrize(
    "options", [{"inputs": "dense"}, {"order": "layer"}, {"batch": 4}], ids=str
)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_options(device, options, name, tiny_models, tmp_path):
    found = both(GPTQ(bits=4, group=16), tiny_models, tmp_path, device, name, options=options)
    compare(found, device, name)


@pytest.mark.parametrize(
    "method", [GPTQ(), RTN(), made("svd"), made("smoothquant")], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_outside_the_blocks(device, method, name, tiny_models, tmp_path):
    """Embeddings have no statistics of their own, and heads see what comes through all blocks."""
    found = both(method, tiny_models, tmp_path, device, name, also=["embeddings", "rest"])
    compare(found, device, name, near=0.1)


@pytest.mark.parametrize(
    "budget", ["5bit", "5bit resident", ("wanda", "0.7x params"), ("svd", "0.7x flops")], ids=str
)
def test_budgets(device, budget, tiny_models, tmp_path):
    method, limit = budget if isinstance(budget, tuple) else (None, budget)
    method = None if method is None else made(method)
    (ours, there), (theirs, _) = both(method, tiny_models, tmp_path, device, budget=limit)
    assert ours.stored_bytes == pytest.approx(theirs.stored_bytes, rel=0.06)
    opens_on_both(there, device)


@pytest.mark.parametrize(
    "chain", [[Scale(), Weighted()], [Halves(), Weighted()], [Taylor()]], ids=str
)
def test_transforms_blocks_and_gradients(device, chain, tiny_models, tmp_path):
    compare(both(chain, tiny_models, tmp_path, device), device)


@pytest.mark.parametrize("made_on", ["device", "cpu"])
def test_statistics_are_used_elsewhere(device, made_on, tiny_models, tmp_path, monkeypatch):
    """What was collected on one device is read on the other; nothing is collected again."""
    places = (device, "cpu") if made_on == "device" else ("cpu", device)
    reports = []
    for number, place in enumerate(places):
        options = RunOptions(inputs="dense", device=place)
        reports.append(
            compress(
                tiny_models["qwen3_moe"], [made("awq", grid=3), Weighted(8)], data("qwen3_moe"),
                out=tmp_path / str(number), options=options, statistics=tmp_path / "stats",
            ).report
        )  # fmt: skip
        monkeypatch.setattr("laconic.calibrate.library.StatisticsLibrary.put", None)
    errors = [sum(row["error"] for row in report.layers) for report in reports]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_goes_on_to_the_same_bytes(device, tiny_models, tmp_path, monkeypatch):
    options, method = RunOptions(device=device), GPTQ(bits=3, group=16)
    monkeypatch.setattr("laconic.models.directory.KEEP_AFTER", -1.0)
    whole = GPTQ.compress_weight

    def interrupted(self, weight, stats):
        if ".layers.1." in stats.layer.name:
            raise KeyboardInterrupt
        return whole(self, weight, stats)

    def run(out):
        compress(tiny_models["llama"], method, data("llama"), out=out, options=options)
        return (out / "model.safetensors").read_bytes()

    monkeypatch.setattr(GPTQ, "compress_weight", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a")
    assert list(tmp_path.glob(".a.partial-*/progress.json"))
    seen = []
    monkeypatch.setattr(GPTQ, "compress_weight", lambda s, w, st: seen.append(0) or whole(s, w, st))
    assert run(tmp_path / "a") == run(tmp_path / "b") and len(seen) == 7 + 14


class TestInMemory:
    @pytest.mark.parametrize("name", ["qwen3", "gpt2", "qwen3_moe"])
    @pytest.mark.parametrize("home", ["device", "cpu"])
    def test_a_model_stays_where_it_is(self, device, name, home, tmp_path):
        """Whatever computes: layers go back to where the model's own were."""
        where = device if home == "device" else "cpu"
        model = TINY[name].model().to(where)
        before = loss(model, name)
        options = RunOptions(device="cpu" if home == "device" else device)
        compress(model, [made("smoothquant", bits=8)], data(name), options=options)
        places = {
            m.weight.device.type
            for m in model.modules()
            if hasattr(m, "records") and "weight" in m.records
        }
        assert places == {torch.device(where).type}
        assert loss(model, name) == pytest.approx(before, abs=0.2)

    @pytest.mark.parametrize(
        "method", ["gptq", "ecgptq", "wanda", "svd", "awq", "hqq", "smoothquant", "rtn"]
    )
    def test_convolutions(self, device, method):
        torch.manual_seed(0)
        errors, answers = [], []
        for place in (device, "cpu"):
            torch.manual_seed(0)
            model = resnet20().eval()
            settings = {"grid": 2} if method == "awq" else {}
            report = compress(
                model, made(method, **settings), IMAGES, options=RunOptions(device=place)
            ).report
            errors.append(sum(row["error"] for row in report.layers))
            with torch.no_grad():
                answers.append(model.to(place)(IMAGES[0]["x"].to(place)))
        assert errors[0] == pytest.approx(errors[1], rel=0.1, abs=0.02)
        scale = float(answers[1].abs().max())
        assert_near(answers[0] / scale, answers[1] / scale, device, rtol=0.2, atol=0.2)

    def test_several_layers_at_once(self, device):
        """Layers of a block are compressed by threads; on a GPU too."""
        torch.set_num_threads(4)
        model = TINY["qwen3"].model()
        report = compress(
            model, GPTQ(bits=3), data("qwen3"), options=RunOptions(device=device)
        ).report
        torch.set_num_threads(1)
        alone = compress(
            TINY["qwen3"].model(), GPTQ(bits=3), data("qwen3"), options=RunOptions(device=device)
        ).report
        assert [r["error"] for r in report.layers] == pytest.approx(
            [r["error"] for r in alone.layers], rel=2e-2
        )

    def test_plain_modules(self, device):
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 64, bias=False))
        rows = [{"x": torch.randn(30, 64)} for _ in range(4)]
        compress(model, [Activations(), GPTQ()], rows, options=RunOptions(device=device))
        assert model.to(device)(rows[0]["x"].to(device)).isfinite().all()
