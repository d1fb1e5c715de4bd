import itertools
import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from laconic.errors import CorruptFile, UsageError
from laconic.measure import latency, timing
from laconic.measure.flops import count
from laconic.measure.latency import GRID, LatencyTable, Prediction
from laconic.measure.operations import Operation
from laconic.measure.synthetic import runner
from laconic.measure.timing import Timing, time_call
from laconic.measure.timings import TimingsFile
from laconic.models.open import open_source
from laconic.tensors import IntQuantizer, Stacked
from laconic.tensors.modules import CompressedEmbedding, TiedLinear
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from tests.models.tiny import TINY

SHAPES = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9), (2, 6, 5)),
    "conv2d": (nn.Conv2d(3, 8, (3, 1), dilation=2), (2, 3, 9, 7), (2, 8, 5, 7)),
    "same": (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (1, 3, 9, 9), (1, 4, 9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 3, 3), (2, 6, 6, 6)),
    "linear": (nn.Linear(8, 5), (2, 3, 8), (6, 5)),
}


def linear(inputs, outputs, rows=8):
    return Operation.of("linear", rows=rows, inputs=inputs, outputs=outputs)


@pytest.fixture
def work(monkeypatch):
    """Time is work: a microsecond for each MAC, and ten to begin with; each call counts."""
    calls = []

    def pretend(table, function):
        calls.append(function)
        return 1e-5 + 1e-6 * getattr(function, "macs", 100)

    def shaped(operation, device, dtype):
        def function():
            raise AssertionError("nothing is run")

        function.macs = operation.macs
        return function

    monkeypatch.setattr(LatencyTable, "_time", pretend)
    monkeypatch.setattr(latency, "runner", shaped)
    return calls


def test_times_of_a_function():
    before = torch.get_num_threads()
    slow = time_call(lambda: time.sleep(0.004), rounds=3, threads=2)
    assert slow.seconds > 0.003 and (slow.rounds, slow.threads, slow.clock) == (3, 2, "wall")
    assert slow.ratio is None and slow.least <= slow.seconds
    assert torch.get_num_threads() == before
    asleep = time_call(lambda: time.sleep(0.004), rounds=3, threads=1, clock="cpu")
    assert asleep.seconds < slow.seconds
    versus = time_call(lambda: None, rival=lambda: time.sleep(0.002), rounds=2)
    assert isinstance(versus, Timing) and versus.ratio > 10


def test_short_calls_are_repeated_until_they_take_a_millisecond(monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * 3e-4)  # any run takes one tick
    monkeypatch.setattr(timing, "time", clock)
    calls = []
    found = time_call(lambda: calls.append(0), rounds=2)
    assert len(calls) == 1 + 3 + 3 * 4  # warm-up, tries, rounds and their warm-up
    assert found.seconds == pytest.approx(3e-4 / 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 0},
        {"clock": "cpu", "threads": 2},
        {"clock": "cpu", "threads": 1, "device": "cuda"},
    ],
)
def test_impossible_timings(settings):
    with pytest.raises(UsageError):
        time_call(lambda: None, **settings)


def test_widths_of_the_grid_are_measured_and_between_them_is_interpolated(work):
    table = LatencyTable()
    on = table.seconds(linear(64, 96))
    assert on == pytest.approx(1e-5 + 1e-6 * 8 * 64 * 96) and len(work) == 1
    assert table.seconds(linear(64, 96)) == on and len(work) == 1
    between = table.seconds(linear(80, 96))
    low, high = table.seconds(linear(64, 96)), table.seconds(linear(96, 96))
    share = math.log(80 / 64) / math.log(96 / 64)
    assert math.log(between) == pytest.approx((1 - share) * math.log(low) + share * math.log(high))
    assert between == pytest.approx(1e-5 + 1e-6 * 8 * 80 * 96, rel=0.01)
    assert table.seconds(linear(80, 80)) < between and len(table) == 4


@given(st.lists(st.floats(1e-6, 1), min_size=16, max_size=16), st.data())
def test_wider_never_takes_less(times, data):
    lines = [16, 24, 32, 48]
    table = LatencyTable(measure=False)
    for number, value in enumerate(times):
        a, b = lines[number // 4], lines[number % 4]
        table._file.put(f"linear [dense] rows=8 @ {a} {b}", value)
    widths = st.integers(16, 48)
    a, b = data.draw(widths), data.draw(widths)
    wider = data.draw(st.integers(a, 48)), data.draw(st.integers(b, 48))
    assert table.seconds(linear(a, b)) <= table.seconds(linear(*wider)) * (1 + 1e-12)


def test_times_in_order_are_kept_as_they_are():
    table = LatencyTable(measure=False)
    for width, value in ((16, 1.0), (24, 2.0), (32, 4.0)):
        table._file.put(f"embedding [dense] rows=8 @ {width}", value)
    found = [table.seconds(Operation.of("embedding", rows=8, width=w)) for w in (16, 24, 32)]
    assert found == pytest.approx([1, 2, 4])


def test_what_is_missing_is_an_error_where_nothing_may_be_measured(tmp_path, work):
    table = LatencyTable(tmp_path / "t.json", measure=False)
    with pytest.raises(UsageError, match="rows=8 @ 4 4 is not in the table"):
        table.seconds(linear(4, 4))
    with pytest.raises(UsageError, match="call calibrate"):
        LatencyTable().predict(nn.Sequential(nn.Linear(4, 4)), torch.ones(8, 4))


def test_the_file_is_kept_by_environment(tmp_path, work):
    path = tmp_path / "deep" / "t.json"
    one = LatencyTable(path, threads=1)
    one.calibrate(nn.Sequential(nn.Linear(4, 4)), torch.ones(8, 4))
    assert len(LatencyTable(path, threads=1)) == len(one) > 0
    assert len(LatencyTable(path, threads=2)) == 0
    assert len(LatencyTable(path, threads=1, dtype=torch.bfloat16)) == 0
    other = LatencyTable(path, threads=2)
    other.calibrate(nn.Sequential(nn.Linear(4, 4)), torch.ones(8, 4))
    content = json.loads(path.read_text())
    assert set(content["seconds"]) == {one.environment, other.environment}
    assert [p.name for p in path.parent.iterdir()] == ["t.json"]
    assert f"torch {torch.__version__} | float32 | median wall" in one.environment


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"laconic_latency": 9}',
        '{"laconic_latency": 1, "seconds": {"a": {"b": "c"}}}',
    ],
)
def test_damaged_files(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(CorruptFile, match="not a latency table"):
        TimingsFile(tmp_path / "t.json", "here")


def test_models_are_predicted_from_their_blocks(work, tiny_models):
    table = LatencyTable(threads=1)
    model, inputs = TINY["gpt2"].model(), TINY["gpt2"].inputs()
    known = table.calibrate(model, inputs)
    assert set(known.blocks) == {"transformer.h.0", "transformer.h.1"}
    assert known.seconds == sum(known.blocks.values()) + known.outside > 0
    assert known.milliseconds == 1000 * known.seconds
    source = open_source(tiny_models["gpt2"])  # weights are not needed
    assert table.predict(source, inputs) == known
    measured = len(work)
    config = model.config
    config.n_inner = 40
    narrow = type(model)(config).eval()
    faster = LatencyTable.predict(table, narrow, inputs)
    assert faster.blocks["transformer.h.0"] < known.blocks["transformer.h.0"]
    assert faster.outside == known.outside and len(work) > measured
    with pytest.raises(UsageError, match="calibrate"):
        table.predict(model, {"input_ids": torch.ones(1, 5, dtype=torch.long)})


def test_rests_are_what_blocks_take_beside_their_products(monkeypatch):
    times = iter([1.0, 0.25, 0.1])  # the model, a block, its product

    monkeypatch.setattr(LatencyTable, "_time", lambda table, function: next(times))
    table = LatencyTable()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    found = table.calibrate(model, torch.ones(8, 4))
    assert found.blocks == pytest.approx({"0": 0.25, "1": 0.25})
    assert found.outside == pytest.approx(0.5)
    assert isinstance(found, Prediction)


def test_rests_grow_with_what_comes_out(monkeypatch):
    table, x = LatencyTable(measure=False), torch.ones(8, 4)

    def model(width):
        return nn.Sequential(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4)))

    monkeypatch.setattr(LatencyTable, "seconds", lambda table, operation: 0.0)
    monkeypatch.setattr(LatencyTable, "_time", lambda table, function: 1.0)
    assert table.calibrate(model(8), x).blocks == pytest.approx({"0": 1.0})
    assert table.predict(model(20), x).blocks == pytest.approx({"0": 2.0})


@pytest.mark.parametrize("name", SHAPES)
def test_results_are_the_numbers_that_come_out(name):
    module, shape, out = SHAPES[name]
    operation = count(module, torch.randn(shape)).by_module[""].operations[0]
    assert operation.results == math.prod(out)


def test_results_of_other_kinds():
    attention = Operation.of(
        "attention", heads=6, queries=5, keys=5, width=4, value_width=3, causal=1
    )
    product = Operation.of("product", batch=2, rows=3, inner=4, columns=5)
    experts = Operation.of("experts", routed=14, hidden=8, inner=6, experts=4)
    assert [o.results for o in (attention, product, experts)] == [90, 30, 14 * 20]


def test_a_model_without_blocks_is_all_outside(work):
    table = LatencyTable()
    found = table.calibrate(nn.Embedding(4, 8), torch.tensor([[1, 2]]))
    assert found.blocks == {} and found.outside > 0


def test_a_real_model_is_timed_and_its_cache_does_not_grow():
    model, inputs = TINY["llama"].model().float(), TINY["llama"].inputs()
    table = LatencyTable(threads=1, rounds=1, clock="cpu", keep="least")
    found = table.calibrate(model, inputs)
    assert set(found.blocks) == {"model.layers.0", "model.layers.1"}
    assert all(math.isfinite(value) and value > 0 for value in found.blocks.values())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_compressed_weights_are_timed_by_their_own_modules():
    model = nn.Sequential(nn.Linear(8, 8))
    replace_module(
        model, "0", {"weight": Record(IntQuantizer(4, "row").quantize(torch.randn(8, 8)))}
    )
    operation = count(model, torch.ones(3, 8)).by_module["0"].operations[0]
    assert operation.format == "int4 row"
    table = LatencyTable(threads=1, rounds=1)
    assert table.seconds(operation) > 0 and len(table) == 1
    tied = TiedLinear(CompressedEmbedding({"weight": model[0].records["weight"]}, torch.float32))
    assert "int4 row" in count(tied, torch.ones(2, 8)).by_module[""].operations[0].format


@pytest.mark.parametrize("name", SHAPES)
def test_made_up_operations_have_the_shapes_of_real_ones(name):
    module, shape, out = SHAPES[name]
    operation = count(module, torch.randn(shape)).by_module[""].operations[0]
    assert runner(operation, "cpu", torch.float64)().shape == out
    assert runner(operation, "cpu", torch.float64)().dtype == torch.float64


def test_made_up_operations_of_other_kinds():
    attention = Operation.of(
        "attention", heads=6, queries=5, keys=5, width=4, value_width=3, causal=1
    )
    assert runner(attention, "cpu")().shape == (1, 6, 5, 3)
    product = Operation.of("product", batch=2, rows=3, inner=4, columns=5)
    assert runner(product, "cpu")().shape == (2, 3, 5)
    assert runner(Operation.of("embedding", rows=7, width=4), "cpu")().shape == (7, 4)
    experts = Operation.of("experts", routed=14, hidden=8, inner=6, experts=4)
    assert runner(experts, "cpu")() is None


def test_compressed_convolutions_and_experts_are_run_whole():
    model = nn.Sequential(nn.Conv2d(2, 8, 3))
    kernel = IntQuantizer(4, "row").quantize(torch.randn(8, 2, 3, 3))
    replace_module(model, "0", {"weight": Record(kernel)})
    conv = count(model, torch.ones(1, 2, 5, 5)).by_module["0"].operations[0]
    assert runner(conv, "cpu")().shape == (1, 8, 3, 3)
    moe, path = TINY["qwen3_moe"].model().float(), "model.layers.0.mlp.experts"
    slots = {}
    for name in ("gate_up_proj", "down_proj"):
        weight = moe.get_submodule(path).get_parameter(name).detach()
        slots[name] = Record(Stacked(tuple(IntQuantizer(4, "row").quantize(w) for w in weight)))
    replace_module(moe, path, slots)
    experts = count(moe, TINY["qwen3_moe"].inputs()).by_module[path].operations[0]
    assert runner(experts, "cpu")().shape == (28, 32)


def test_the_grid_encloses_all_widths():
    assert GRID[:7] == [1, 2, 3, 4, 6, 8, 12] and GRID[-1] > 1 << 39


def test_grouped_convolutions_are_not_interpolated(work):
    table = LatencyTable()
    table.seconds(
        count(nn.Conv2d(10, 10, 3, groups=10), torch.ones(1, 10, 5, 5)).by_module[""].operations[0]
    )
    assert len(table) == 1
