import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from laconic.errors import LaconicError, OutputExists, UsageError
from laconic.models.directory import DirectorySink
from laconic.models.sink import MemorySink, NoSink, tie_heads
from laconic.tensors import Dense, IntQuantizer
from laconic.tensors.modules import CompressedLinear, TiedEmbedding, TiedLinear
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record, decode

WEIGHT = torch.randn(8, 8)
RECORD = Record(IntQuantizer(4).quantize(WEIGHT))


def save_config(folder, modules):
    (folder / "config.json").write_text(json.dumps(modules))


def tree(folder):
    """Everything below `folder`, hidden files included, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def write(out, **options):
    with DirectorySink(out, save_config, **options) as sink:
        sink.put_module("a", {"weight": RECORD})
        sink.put_tensor("b.weight", WEIGHT)
        sink.keep_module("c", {"weight": Record(Dense(WEIGHT))})


class TestDirectory:
    def test_what_is_written(self, tmp_path):
        write(tmp_path / "deep" / "out")
        assert os.listdir(tmp_path / "deep") == ["out"]
        state = load_file(tmp_path / "deep" / "out" / "model.safetensors")
        assert torch.equal(decode(state["a.weight"].numpy()).dense(), RECORD.weight.dense())
        assert torch.equal(state["b.weight"], WEIGHT)
        assert torch.equal(decode(state["c.weight"].numpy()).dense(), WEIGHT)
        assert json.loads((tmp_path / "deep" / "out" / "config.json").read_text()) == ["a", "c"]

    def test_equal_contents_give_equal_bytes(self, tmp_path):
        write(tmp_path / "one")
        write(tmp_path / "two")
        assert tree(tmp_path / "one") == tree(tmp_path / "two")

    def test_sizes_that_are_told(self, tmp_path):
        with DirectorySink(tmp_path / "out", save_config) as sink:
            assert sink.put_module("a", {"weight": RECORD}) == {
                "weight": RECORD.weight.stored_bytes
            }
            stored = sink.finish()
            assert sink.finish() == stored
        assert stored == (tmp_path / "out" / "model.safetensors").stat().st_size

    def test_shards(self, tmp_path):
        out = tmp_path / "out"
        with DirectorySink(out, save_config, shard_bytes=600) as sink:
            for number in range(5):
                sink.put_tensor(f"t{number}", torch.full((100,), float(number)))
        files = sorted(path.name for path in out.glob("*.safetensors"))
        assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == {f"t{n}" for n in range(5)}
        for name, file in index["weight_map"].items():
            assert (load_file(out / file)[name] == float(name[1:])).all()

    def test_a_last_shard_that_was_just_filled(self, tmp_path):
        with DirectorySink(tmp_path / "out", save_config, shard_bytes=400) as sink:
            sink.put_tensor("a", torch.zeros(100))
        assert (tmp_path / "out" / "model.safetensors").is_file()

    def test_tensors_that_share_memory(self, tmp_path):
        with DirectorySink(tmp_path / "out", save_config) as sink:
            for name, tensor in {"a": WEIGHT, "b": WEIGHT, "c": WEIGHT[2:], "d": WEIGHT.T}.items():
                sink.put_tensor(name, tensor)
        state = load_file(tmp_path / "out" / "model.safetensors")
        assert torch.equal(state["b"], WEIGHT) and torch.equal(state["c"], WEIGHT[2:])
        assert torch.equal(state["d"], WEIGHT.T)


class TestFailures:
    """Whatever happens, there is the old state or the new one, and nothing beside."""

    def test_exists(self, tmp_path):
        write(tmp_path / "out")
        before = tree(tmp_path)
        with pytest.raises(OutputExists, match="overwrite"):
            write(tmp_path / "out")
        assert tree(tmp_path) == before

    def test_overwrite(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
        write(tmp_path / "out", overwrite=True)
        assert os.listdir(tmp_path) == ["out"] and not (tmp_path / "out" / "old").exists()

    def test_overwrite_a_file(self, tmp_path):
        (tmp_path / "out").write_text("a file")
        write(tmp_path / "out", overwrite=True)
        assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out" / "config.json").is_file()

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, LaconicError])
    @pytest.mark.parametrize("overwrite", [True, False])
    def test_in_the_middle(self, tmp_path, error, overwrite):
        if overwrite:
            write(tmp_path / "out")
        before = tree(tmp_path)
        with (
            pytest.raises(error),
            DirectorySink(tmp_path / "out", save_config, overwrite=overwrite) as sink,
        ):
            sink.put_module("a", {"weight": RECORD})
            sink._flush()
            raise error
        assert tree(tmp_path) == before

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
            (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        ],
    )
    def test_while_writing(self, tmp_path, monkeypatch, error, says):
        def fail(*_, **__):
            raise error

        write(tmp_path / "out")
        before = tree(tmp_path)
        monkeypatch.setattr("laconic.models.directory.write_file", fail)
        with pytest.raises(LaconicError, match=says) as caught:
            write(tmp_path / "out", overwrite=True)
        assert "nothing was left behind" in str(caught.value)
        assert tree(tmp_path) == before

    def test_while_publishing(self, tmp_path, monkeypatch):
        write(tmp_path / "out")
        before = tree(tmp_path)
        original = type(tmp_path).rename

        def rename(self, target):
            if ".partial-" in self.name:
                raise KeyboardInterrupt
            return original(self, target)

        monkeypatch.setattr(type(tmp_path), "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", overwrite=True)
        assert tree(tmp_path) == before

    def test_configs_that_cannot_be_written_are_known_before_the_work(self, tmp_path):
        def refuse(folder, modules):
            raise UsageError("no factory")

        with (
            pytest.raises(UsageError, match="no factory"),
            DirectorySink(tmp_path / "out", refuse, overwrite=True),
        ):
            pytest.fail("the work has begun")
        assert tree(tmp_path) == {}

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(LaconicError, match="cannot write"):
            write(tmp_path / "file" / "out")


class TestMemory:
    def test_puts_twins_in_place(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        second = model[1]
        with MemorySink(model) as sink:
            assert sink.put_module("0", {"weight": RECORD}) == {
                "weight": RECORD.weight.stored_bytes
            }
            sink.put_tensor("0.bias", torch.zeros(8))
            sink.keep_module("1", {"weight": Record(Dense(WEIGHT))})
        assert isinstance(model[0], CompressedLinear) and model[1] is second

    def test_after_a_failure_all_is_as_it_was(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
        before = dict(model.named_modules())
        with pytest.raises(KeyboardInterrupt), MemorySink(model) as sink:
            sink.put_module("0", {"weight": RECORD})
            sink.put_module("1.0", {"weight": RECORD})
            raise KeyboardInterrupt
        assert dict(model.named_modules()) == before

    def test_ties_too(self):
        model = Tied()
        before, state = dict(model.named_modules()), set(model.state_dict())
        with pytest.raises(ValueError), MemorySink(model) as sink:
            sink.put_module("table", {"weight": Record(Dense(model.table.weight.data))})
            assert model.all_tied_weights_keys == {"head.bias": "bias"}
            raise ValueError
        assert dict(model.named_modules()) == before and set(model.state_dict()) == state
        assert len(model.all_tied_weights_keys) == 3


class Tied(nn.Module):
    """A head, a second table and a bias that are tied, as transformers notes it."""

    def __init__(self):
        super().__init__()
        self.table, self.other = nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9)
        self.bias = self.head.bias
        self.other.weight = self.head.weight = self.table.weight
        self.all_tied_weights_keys = {
            "head.weight": "table.weight", "other.weight": "table.weight", "head.bias": "bias",
        }  # fmt: skip


def test_heads_and_tables_follow_their_source():
    model = Tied()
    x, index = torch.randn(2, 4), torch.tensor([3, 8])
    head, rows = model.head(x), model.other(index)
    tie_heads(model)
    assert isinstance(model.head, nn.Linear)  # nothing is compressed yet
    MemorySink(model).put_module("table", {"weight": Record(Dense(model.table.weight.data))})
    assert isinstance(model.head, TiedLinear) and isinstance(model.other, TiedEmbedding)
    assert torch.allclose(model.head(x), head) and torch.equal(model.other(index), rows)
    assert model.head.bias is model.bias
    assert set(model.state_dict()) == {"table.weight", "bias", "head.bias"}


class TestResuming:
    """A directory of a job that has a name."""

    def begin(self, tmp_path, error=None, job="job"):
        with DirectorySink(tmp_path / "out", save_config, job=job) as sink:
            found = sink.resumed()
            if not found:
                sink.put_module("a", {"weight": RECORD})
                sink.checkpoint({"blocks": 1})
            sink.put_tensor("b.weight", WEIGHT)
            if error:
                raise error
            sink.keep_module("c", {"weight": Record(Dense(WEIGHT))})
        return found

    def kill(self, tmp_path, monkeypatch):
        """As if the process had died: nothing is cleaned up."""
        with monkeypatch.context() as patch:
            patch.setattr(DirectorySink, "_remove", lambda self: None)
            with pytest.raises(ValueError):
                self.begin(tmp_path, ValueError())

    def test_goes_on(self, tmp_path, monkeypatch):
        self.kill(tmp_path, monkeypatch)
        assert self.begin(tmp_path) == {"blocks": 1}
        write(tmp_path / "whole")
        assert tree(tmp_path / "out") == tree(tmp_path / "whole")
        assert sorted(os.listdir(tmp_path)) == ["out", "whole"]

    def test_another_job_begins(self, tmp_path, monkeypatch):
        self.kill(tmp_path, monkeypatch)
        assert self.begin(tmp_path, job="other") == {}

    def test_damaged_progress(self, tmp_path, monkeypatch):
        self.kill(tmp_path, monkeypatch)
        (tmp_path / ".out.partial-job" / "progress.json").write_text("{")
        assert self.begin(tmp_path) == {}

    def test_begun_again(self, tmp_path, monkeypatch):
        self.kill(tmp_path, monkeypatch)
        with DirectorySink(tmp_path / "out", save_config, job="job") as sink:
            sink.restart()
            assert sink.resumed() == {}
            sink.put_tensor("x", WEIGHT)
        assert list(load_file(tmp_path / "out" / "model.safetensors")) == ["x"]

    def test_two_at_once(self, tmp_path):
        with DirectorySink(tmp_path / "out", save_config, job="job") as first:
            with (
                pytest.raises(LaconicError, match="another process"),
                DirectorySink(tmp_path / "out", save_config, job="job"),
            ):
                pytest.fail("both write")
            first.put_tensor("x", WEIGHT)
        assert (tmp_path / "out" / "model.safetensors").is_file()

    @pytest.mark.parametrize("after", [0.0, 1e9])
    def test_an_interrupt_keeps_long_work_and_says_so(self, tmp_path, monkeypatch, after):
        monkeypatch.setattr("laconic.models.directory.KEEP_AFTER", after)
        with pytest.raises(KeyboardInterrupt) as caught:
            self.begin(tmp_path, KeyboardInterrupt())
        kept = os.listdir(tmp_path) == [".out.partial-job"]
        assert kept == (after == 0.0) == bool(getattr(caught.value, "__notes__", []))

    def test_memory_is_bounded_by_pieces(self, tmp_path, monkeypatch):
        monkeypatch.setattr("laconic.models.directory.PIECE_BYTES", 500)
        with DirectorySink(tmp_path / "out", save_config, shard_bytes=900) as sink:
            for number in range(6):
                sink.put_tensor(f"t{number}", torch.full((100,), float(number)))
                assert sum(t.nbytes for t in sink._pending.values()) < 500
        assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def test_nothing_is_kept_of_a_look_and_there_is_nothing_to_resume():
    with NoSink() as sink:
        assert sink.put_module("a", {"weight": RECORD}) == {"weight": 0}
        sink.put_tensor("b", WEIGHT)
        sink.checkpoint({"block": 3})
        assert sink.resumed() == {} and sink.states_folder() is None
        sink.restart()
    with pytest.raises(ZeroDivisionError), NoSink():
        1 / 0


def test_what_is_tied_in_a_module_of_another_kind_stays_so():
    """transformers refuses to tie it, which is better than a random weight."""
    model = Tied()
    model.head = nn.Conv1d(4, 9, 1, bias=False)
    head = model.head
    replace_module(model, "table", {"weight": Record(Dense(model.table.weight.data))})
    tie_heads(model)
    assert model.head is head and "head.weight" in model.all_tied_weights_keys
