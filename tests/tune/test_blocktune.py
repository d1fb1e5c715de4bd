from dataclasses import replace

import pytest
import torch

from laconic.compression import compress
from laconic.errors import BudgetError, DataError, UsageError
from laconic.loading import load
from laconic.prune.magnitude import Magnitude
from laconic.quantize.aqlm import AQLM
from laconic.quantize.eora import EoRA
from laconic.quantize.gptvq import GPTVQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.tune.blocktune import BlockTune
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY

TUNE = BlockTune(epochs=4, rate=0.01, batch=4)
FIRST = {
    "integers": [RTN(2, 8)],
    "codebooks": [GPTVQ(2, 2, overhead=1.0)],
    "additive": [AQLM(1, 4, 4, rounds=1)],
    "factors": [RTN(2, 8), EoRA(2)],
}


def gains(report):
    """Errors of each block before and after, from the notes."""
    notes = {n for row in report.layers for n in row["notes"] if n.startswith("blocktune")}
    words = [note.split("block ")[1].split(";")[0].split(" to ") for note in notes]
    return [(float(before), float(after)) for before, after in words]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_blocks_come_nearer_to_the_dense_ones(tiny_models, tmp_path, name):
    report = compress(
        tiny_models[name], [RTN(2, 8), TUNE], data(name, 16), out=tmp_path / "o"
    ).report
    found = gains(report)
    assert found and all(after <= before for before, after in found)
    assert any(after < 0.95 * before for before, after in found)


@pytest.mark.parametrize("kind", FIRST)
def test_every_format(tiny_models, tmp_path, kind):
    report = compress(
        tiny_models["llama"], [*FIRST[kind], TUNE], data("llama", 16), out=tmp_path / "o"
    ).report
    assert any(after < before for before, after in gains(report))
    alone = compress(
        tiny_models["llama"], FIRST[kind], data("llama", 16), out=tmp_path / "a"
    ).report
    assert [r["format"] for r in report.layers] == [r["format"] for r in alone.layers]
    assert [r["resident_bits_per_weight"] for r in report.layers] == [
        r["resident_bits_per_weight"] for r in alone.layers
    ]


def test_what_is_stored_is_what_was_trained(tiny_models, tmp_path):
    """The file gives the outputs that the block was left with, norms included; codes stay if they shall."""
    chain = [RTN(2, 8), replace(TUNE, codes=False)]
    compress(tiny_models["llama"], chain, data("llama", 16), out=tmp_path / "o")
    compress(tiny_models["llama"], [RTN(2, 8)], out=tmp_path / "a")
    tuned, plain = (dict(load(tmp_path / n).named_parameters()) for n in "oa")
    norms = [n for n in plain if "layernorm" in n]
    assert norms and any(not torch.equal(tuned[n], plain[n]) for n in norms)
    a, b = (load(tmp_path / n) for n in "oa")
    for layer in range(2):
        x, y = (m.model.layers[layer].mlp.up_proj.weight for m in (a, b))
        assert torch.equal(x.packed, y.packed) and not torch.equal(x.scale, y.scale)


def test_norms_may_stay(tiny_models, tmp_path):
    tune = BlockTune(epochs=1, rate=0.01, norms=False)
    compress(tiny_models["llama"], [RTN(2, 8), tune], data("llama", 16), out=tmp_path / "o")
    before = dict(TINY["llama"].model().named_parameters())
    after = dict(load(tmp_path / "o").named_parameters())
    assert all(torch.equal(after[n], before[n]) for n in after if "layernorm" in n)


def test_masks_have_nothing_to_tune_but_norms(tiny_models, tmp_path):
    tune = BlockTune(epochs=1, norms=False)
    report = compress(
        tiny_models["llama"], [Magnitude(), tune], data("llama"), out=tmp_path / "o"
    ).report
    assert not gains(report)


def test_the_same_twice(tiny_models, tmp_path):
    files = []
    for out in ("a", "b"):
        compress(tiny_models["llama"], [RTN(2, 8), TUNE], data("llama", 16), out=tmp_path / out)
        files.append((tmp_path / out / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_without_data(tiny_models, tmp_path):
    with pytest.raises(DataError, match="data"):
        compress(tiny_models["llama"], [RTN(2, 8), TUNE], out=tmp_path / "o")


@pytest.mark.parametrize("target", ["model", "block"])
def test_codes_move_by_a_step_and_lose_less(tiny_models, tmp_path, target):
    found = {}
    for name, tune in {"off": replace(TUNE, codes=False), "on": TUNE}.items():
        chain = [RTN(2, 8), replace(tune, target=target, epochs=6, batch=1)]
        report = compress(
            tiny_models["llama"], chain, data("llama", 16), out=tmp_path / name
        ).report
        found[name] = gains(report)
    assert sum(a for _, a in found["on"]) < sum(a for _, a in found["off"])
    on, off = (load(tmp_path / name).model.layers[0].mlp.up_proj.weight for name in ("on", "off"))
    moved = on.codes().int() - off.codes().int()
    assert moved.any() and moved.abs().max() == 1


def test_codes_behind_a_transform(tiny_models, tmp_path):
    """What codes come nearer to stands behind the transform, too."""
    tune = replace(TUNE, rate=1e-6, norms=False, epochs=8, batch=1)
    chain = [Hadamard(), RTN(2, 8), tune]
    report = compress(tiny_models["llama"], chain, data("llama", 16), out=tmp_path / "o").report
    found = gains(report)
    assert len(found) == 2 and all(after < 0.99 * before for before, after in found)


def test_after_blocks_that_lose_it_makes_up_for_them(tiny_models, tmp_path):
    """Towards the dense model the last block's error is less than towards its own inputs' answers."""
    last = {}
    for target in ("model", "block"):
        tune = replace(TUNE, target=target, epochs=8, batch=1)
        compress(tiny_models["llama"], [RTN(2, 8), tune], data("llama", 16), out=tmp_path / target)
        dense, loaded = TINY["llama"].model(), load(tmp_path / target)
        ids = torch.cat([row["input_ids"] for row in data("llama", 16)])
        with torch.no_grad():
            states = [m(ids, output_hidden_states=True).hidden_states[-1] for m in (dense, loaded)]
        last[target] = (states[0] - states[1]).norm()
    assert last["model"] < last["block"]


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"rate": 0.0}, {"batch": 0}, {"patience": 0}, {"target": "nothing"}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        BlockTune(**settings)


def test_behind_a_budget(tiny_models, tmp_path):
    """The budget is spread over the methods of layers; blocks are trained behind them, within it."""
    tune = replace(TUNE, epochs=1)
    result = compress(
        tiny_models["llama"], [RTN(group=8), tune], data("llama", 16), out=tmp_path / "o",
        budget="5bit",
    ).report  # fmt: skip
    assert gains(result) and result.bits_per_weight <= 5
    with pytest.raises(BudgetError, match="come first"):
        compress(
            tiny_models["llama"], [tune, RTN(group=8)], data("llama", 16), out=tmp_path / "p",
            budget="5bit",
        )  # fmt: skip
