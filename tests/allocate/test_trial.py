from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from laconic.allocate.trial import Trial
from laconic.calibrate.calibration import read_calibration
from laconic.calibrate.inputs import Subject
from laconic.compression import compress
from laconic.errors import UsageError
from laconic.loading import load
from laconic.models.open import open_source
from laconic.planning import PlannedStep
from laconic.quantize.awq import AWQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY

CHAINS = {
    "llama": [GPTQ(2, 16)],
    "gpt2": [RTN(2, 16)],
    "qwen3_moe": [GPTQ(2, 16)],
    "qwen3": [AWQ(2, 16)],
}


def opened(tiny_models, name):
    source = open_source(tiny_models[name])
    calibration = read_calibration(data(name, 15), Subject(source.skeleton, source.folder))
    return source, calibration


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("also", [(), ("embeddings", "rest")], ids=["blocks", "all"])
def test_the_model_answers_as_it_will_from_its_files(tiny_models, tmp_path, name, also):
    source, calibration = opened(tiny_models, name)
    compress(tiny_models[name], CHAINS[name], calibration, out=tmp_path / "out", also=also)
    dense, loaded = TINY[name].model().float(), load(tmp_path / "out", dtype=torch.float32)
    moved = []
    for number in calibration.held_out:
        with torch.no_grad():
            p, q = (
                F.log_softmax(model(**calibration.inputs[number]).logits.double(), dim=-1)
                for model in (dense, loaded)
            )
        moved.append((p.exp() * (p - q)).sum(dim=-1).flatten())
    found = Trial(source, calibration, also=also)([PlannedStep(m) for m in CHAINS[name]])
    assert found == pytest.approx(torch.cat(moved).mean().item(), rel=2e-3)
    assert found > 1e-3


def test_it_is_dense_again_behind_each(tiny_models):
    trial = Trial(*opened(tiny_models, "llama"))
    coarse, fine = [PlannedStep(RTN(2))], [PlannedStep(RTN(6))]
    first = trial(coarse)
    assert trial(fine) < 0.1 * first
    assert trial(coarse) == first
    assert trial([]) < 1e-9


def test_nothing_to_ask_on(tiny_models):
    source, calibration = opened(tiny_models, "llama")
    few = replace(calibration, held_out=range(0))
    with pytest.raises(UsageError, match="held out"):
        Trial(source, few)


def test_too_large_to_be_held_whole(tiny_models, monkeypatch):
    monkeypatch.setattr("laconic.calibrate.outline.LARGEST", 1000)
    with pytest.raises(UsageError, match="8 GiB"):
        Trial(*opened(tiny_models, "llama"))
