import pytest
import torch
from torch import nn

from laconic.measure import resources
from laconic.measure.resources import peak_rss_bytes, resident_bytes, stored_bytes
from laconic.tensors import IntQuantizer
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record


def test_stored_bytes_counts_weight_files_alone(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    (tmp_path / "b.safetensors").write_bytes(bytes(20))
    (tmp_path / "config.json").write_bytes(bytes(1000))
    assert stored_bytes(tmp_path) == 120


def test_resident_bytes_counts_shared_tensors_once_and_codes_as_packed():
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Linear(32, 64))
    assert resident_bytes(model) == 4 * (64 * 32 * 2 + 64)
    value = IntQuantizer(4, "row").quantize(model[0].weight.detach())
    replace_module(model, "0", {"weight": Record(value)})
    assert resident_bytes(model) == 4 * (64 * 32 + 64) + value.resident_bytes
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert resident_bytes(tied) == 4 * 64


def test_resident_bytes_of_views_and_of_what_is_not_there():
    rows = torch.zeros(8, 4)
    views = nn.ParameterList([nn.Parameter(rows), nn.Parameter(rows[:4])])
    assert resident_bytes(views) == 4 * 32
    halves = nn.ParameterList([nn.Parameter(rows[:4]), nn.Parameter(rows[4:])])
    assert resident_bytes(halves) == 4 * 32
    assert resident_bytes(nn.ParameterList([nn.Parameter(rows[:2])])) == 4 * 8
    assert resident_bytes(nn.Linear(4, 8, device="meta")) == 4 * 40


def test_peak_memory_is_at_least_what_was_just_used():
    before = peak_rss_bytes()
    block = torch.ones(16 << 20)
    assert peak_rss_bytes() >= before and block.sum() == 16 << 20


def test_a_system_that_does_not_say_the_peak(monkeypatch):
    monkeypatch.setattr(resources.Path, "read_text", lambda _: "Name: python\nVmRSS: 12 kB\n")
    with pytest.raises(OSError, match="no VmHWM"):
        peak_rss_bytes()
    monkeypatch.setattr(resources.Path, "read_text", lambda _: "VmHWM:\t   12 kB\nVmRSS: 9 kB\n")
    assert peak_rss_bytes() == 12 * 1024
