"""Sequences in lockstep: the bytes of running a block again for each input, computed once."""

import threading

import pytest
import torch
from torch import nn

from laconic.calibrate import block_pass
from laconic.calibrate.chain import in_order
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.lockstep import Lockstep, looking
from laconic.calibrate.options import RunOptions
from laconic.calibrate.stream import SequentialStream, open_stream
from laconic.compression import compress
from laconic.models.memory import MemorySource
from laconic.models.open import open_source
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from tests.calibrate.test_calibrated import data, weights

METHODS = {"gptq": [GPTQ(3, 16)], "chain": [Hadamard(), GPTQ(3, 16)]}


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def opened(folder, name="llama", number=0):
    source = open_source(folder)
    stream = open_stream(source, data(name))
    return stream, LiveBlock(source, source.blocks[number])


def ordered(stream, live):
    return in_order(live, lambda s: stream.run(0, live.module, s))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "opt", "vit"])
def test_same_bytes_and_reports_as_running_again(name, method, tiny_models, tmp_path, monkeypatch):
    options, made = RunOptions(order="layer"), []
    for limit in (block_pass.LOCKSTEP, 0):
        monkeypatch.setattr(block_pass, "LOCKSTEP", limit)
        out = tmp_path / str(limit)
        report = compress(tiny_models[name], METHODS[method], data(name), out=out, options=options)
        made.append((weights(out), report.report.layers))
    # errors are measured while sequences wait, or after the block is done
    (one, rows), (other, again) = made
    assert one == other
    assert [row["error"] for row in rows] == pytest.approx(
        [row["error"] for row in again], rel=1e-3
    )
    strip = [{k: v for k, v in row.items() if k != "error"} for row in rows]
    assert strip == [{k: v for k, v in row.items() if k != "error"} for row in again]


def test_auto_is_layer_where_all_sequences_fit(tiny_models, tmp_path, monkeypatch):
    def made(name, **options):
        out = tmp_path / name
        compress(
            tiny_models["llama"], GPTQ(3, 16), data("llama"), out=out, options=RunOptions(**options)
        )
        return weights(out)

    auto, layer, block = made("a"), made("l", order="layer"), made("b", order="block")
    assert auto == layer != block
    monkeypatch.setattr(block_pass, "LOCKSTEP", 0)
    assert made("small") == block
    dense = made("dense", inputs="dense"), made("dense block", inputs="dense", order="block")
    assert dense[0] == dense[1]


def test_a_block_is_computed_once_for_each_sequence(tiny_models, tmp_path, monkeypatch):
    calls = []
    run = SequentialStream.run
    monkeypatch.setattr(
        SequentialStream, "run", lambda self, n, b, s: calls.append((n, s)) or run(self, n, b, s)
    )
    compress(tiny_models["llama"], GPTQ(3, 16), data("llama"), out=tmp_path / "o")
    blocks = len(open_source(tiny_models["llama"]).blocks)
    order = [
        (n, 0) for n in range(blocks)
    ]  # the first goes ahead, to see in which order layers compute
    assert sorted(calls) == sorted(order + [(n, s) for n in range(blocks) for s in range(10)])


class TestMap:
    def test_all_wait_before_each_group_in_turn(self, tiny_models, threads):
        stream, live = opened(tiny_models["llama"])
        groups, seen = ordered(stream, live).groups, []

        def decide(group, arrived):
            assert threading.current_thread() is threading.main_thread()
            with looking(live, group, arrived) as look:
                seen.append(
                    [group[0].name.rpartition(".")[2], list(arrived), look(3)[0][1].inputs.shape]
                )

        out = Lockstep(live, groups, decide).map(lambda s: stream.run(0, live.module, s), range(10))
        assert [name for name, *_ in seen] == ["q_proj", "o_proj", "gate_proj", "down_proj"]
        assert all(numbers == list(range(10)) for _, numbers, _ in seen)
        assert seen[0][2] == (1, 24, live.weight(groups[0][0]).shape[1])
        for number, hidden in enumerate(out):
            torch.testing.assert_close(hidden, stream.run(0, live.module, number))
        assert torch.get_num_threads() == threads

    def test_an_error_of_a_decision_ends_every_thread(self, tiny_models, threads):
        stream, live = opened(tiny_models["llama"])

        def decide(group, arrived):
            raise ValueError("no")

        before = threading.active_count()
        with pytest.raises(ValueError, match="no"):
            Lockstep(live, ordered(stream, live).groups, decide).map(
                lambda s: stream.run(0, live.module, s), range(10)
            )
        assert threading.active_count() == before
        assert not live.computing("model.layers.0.self_attn.q_proj")._forward_pre_hooks

    def test_so_does_one_of_a_sequence(self, tiny_models, threads):
        stream, live = opened(tiny_models["llama"])

        def run(sequence):
            out = stream.run(0, live.module, sequence)
            if sequence == 4:
                raise ZeroDivisionError
            return out

        with pytest.raises(ZeroDivisionError):
            Lockstep(live, ordered(stream, live).groups, lambda g, a: None).map(run, range(10))

    def test_who_turns_off_does_not_hold_up_the_others(self, tiny_models, threads):
        stream, live = opened(tiny_models["llama"])
        counts = []
        Lockstep(live, ordered(stream, live).groups, lambda g, a: counts.append(len(a))).map(
            lambda s: stream.run(0, live.module, s) if s % 2 else None, range(10)
        )
        assert counts == [5] * 4


class Twice(nn.Module):
    """A block that calls one of its layers twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, hidden_states):
        return self.layer(self.layer(hidden_states).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Twice() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_a_block_that_calls_a_layer_twice_is_run_again():
    draw = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(1, 16, 8, generator=draw)} for _ in range(6)]
    source = MemorySource(Net())
    stream = open_stream(source, rows)
    live = LiveBlock(source, source.blocks[0])
    assert not ordered(stream, live).straight
    report = compress(Net(), GPTQ(4, 8), rows).report
    assert all(row["tokens"] > 0 for row in report.layers)
