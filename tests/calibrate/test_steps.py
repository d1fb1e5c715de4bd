"""Farms, and what a step that sees a whole block is shown."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from laconic.calibrate import ray_farm
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.ray_farm import RayFarm
from laconic.calibrate.steps import BlockView, LocalFarm, Task, work
from laconic.errors import MissingExtra, UsageError
from laconic.models.layout import Layer
from laconic.tensors import Dense
from laconic.tensors.stored import Record


class Doubles:
    wants, changes_inputs, follows_dense = (), False, False

    def revise(self, layer, weight, record, stats):
        assert not torch.is_grad_enabled()
        stats.note(f"{layer.name} doubled on {torch.get_num_threads()} threads")
        return Record(Dense(2 * weight))


def tasks():
    layers = [Layer(name, name, "weight", torch.Size((1, 2)), "linear") for name in "abc"]
    return [
        Task(
            layer, torch.full((1, 2), float(i)), Record(Dense(torch.zeros(1, 2))), LayerStats(layer)
        )
        for i, layer in enumerate(layers)
    ]


class Cluster:
    """What a farm asks of Ray, done here."""

    def __init__(self, connected=False):
        self.connected, self.asked = connected, {}

    def is_initialized(self):
        return self.connected

    def init(self, **settings):
        self.connected, self.asked = True, settings

    def shutdown(self):
        self.connected = False

    def remote(self, **settings):
        return lambda function: SimpleNamespace(remote=lambda *given: lambda: function(*given))

    def put(self, value):
        return value

    def get(self, pending):
        return [one() for one in pending]


@pytest.mark.parametrize("far", [False, True])
def test_farms_give_results_and_notes_in_order(monkeypatch, far):
    monkeypatch.setitem(sys.modules, "ray", Cluster())
    found = (RayFarm(2) if far else LocalFarm()).map(Doubles(), tasks())
    assert [record.weight.dense()[0, 0].item() for record, _ in found] == [0, 2, 4]
    assert [notes for _, notes in found] == [[f"{n} doubled on 1 threads"] for n in "abc"]


def test_a_worker_has_one_thread():
    torch.set_num_threads(2)
    assert work(Doubles(), tasks()[0])[1] == ["a doubled on 2 threads"]
    assert ray_farm._alone(Doubles(), tasks()[0])[1] == ["a doubled on 1 threads"]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("connected", [False, True])
def test_a_cluster_of_others_is_left_running(monkeypatch, connected):
    cluster = Cluster(connected)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    farm = RayFarm(3)
    assert cluster.asked.get("num_cpus") == (None if connected else 3)
    farm.close()
    assert cluster.connected == connected


def test_farms_that_cannot_be(monkeypatch):
    with pytest.raises(UsageError, match="at least 1, found 0"):
        RayFarm(0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"ray is not installed.*laconic\[ray\]"):
        RayFarm(1)


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_target_is_of_the_dense_model(with_reference):
    """Where its sequences were asked for; else of the dense block on compressed inputs."""

    class Run:
        def __init__(self, start):
            self.start = start

        def run(self, number, module, sequence):
            return module(self.start + number + sequence)

    live = SimpleNamespace(module=nn.Identity())
    reference = Run(torch.tensor(100)) if with_reference else None
    view = BlockView(live, {}, 3, Run(torch.tensor(0)), reference, range(4))
    assert view.output(1) == 4
    assert view.target(1, nn.Flatten(0)) == (104 if with_reference else 4)
