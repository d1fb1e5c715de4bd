import pytest
import torch

from laconic.compression import compress
from laconic.errors import UsageError
from laconic.loading import load
from laconic.quantize.activations import Activations
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.quantize.wush import WUSH
from laconic.tensors import Dense, IntQuantizer
from laconic.tensors.stored import Record
from tests.calibrate.test_calibrated import data
from tests.contracts.data import stats_for
from tests.models.tiny import TINY


def layer(rows=48, columns=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    x[:, 7] *= 30
    return torch.randn(rows, columns, generator=generator), x


def stats_of(weight, x, method):
    stats = stats_for(method, weight, 4)
    (collected,) = stats.collected.values()
    collected.sums["moment"].copy_(x.T.double() @ x.double())
    collected.count = len(x)
    return stats


def error(weight, x, record, group):
    """Of a product of which both sides are rounded to 4 bits."""
    w, inputs = record.weight.dense(torch.float32), x
    if record.transform is not None:
        inputs = record.transform(x)
    grid = IntQuantizer(4, group)
    y = grid.project(inputs) @ grid.project(w).T
    whole = x @ weight.T
    return float(((y - whole) ** 2).sum() / (whole**2).sum())


def test_loses_less_than_a_hadamard_and_that_less_than_nothing():
    weight, x = layer()
    dense = Record(Dense(weight))
    errors = []
    for method in (WUSH(16), Hadamard(block=16), None):
        stats = stats_of(weight, x, WUSH())
        record = dense if method is None else method.revise(weight, dense, stats)
        errors.append(error(weight, x, record, 16))
    assert errors[0] < errors[1] < errors[2] and errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("precision, off", [("bf16", 1e-4), ("fp32", 1e-4)])
def test_the_layer_computes_what_it_did(precision, off):
    weight, x = layer()
    record = WUSH(precision=precision).revise(
        weight, Record(Dense(weight)), stats_of(weight, x, WUSH())
    )
    y = record.transform(x) @ record.weight.dense().T
    assert float((y - x @ weight.T).norm() / (x @ weight.T).norm()) < off


def test_promises_are_noted():
    weight, x = layer()
    stats = stats_of(weight, x, WUSH())
    WUSH().revise(weight, Record(Dense(weight)), stats)
    assert any("predicted error 0." in note for note in stats.notes)


def test_compressed_weights_are_refused():
    weight, x = layer()
    with pytest.raises(UsageError, match="before the methods"):
        WUSH().revise(weight, Record(IntQuantizer().quantize(weight)), stats_of(weight, x, WUSH()))


@pytest.mark.parametrize("method", [RTN(4, 8), GPTQ(4, 8)], ids=["rtn", "gptq"])
def test_in_a_chain(tiny_models, tmp_path, method):
    chain = [WUSH(8, precision="fp32"), method, Activations(4, group=8)]
    report = compress(tiny_models["llama"], chain, data("llama"), out=tmp_path / "o").report
    assert all(row["error"] < 0.2 for row in report.layers)
    model = load(tmp_path / "o")
    inputs = TINY["llama"].inputs()
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("settings", [{"block": 3}, {"damp": -1.0}, {"precision": "fp8"}])
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        WUSH(**settings)
