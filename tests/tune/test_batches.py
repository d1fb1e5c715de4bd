from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import DataError, UsageError
from laconic.tune.batches import Batches, InOrder, Shuffled, mixed, to_device


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 2**40), st.integers(0, 3))
def test_an_epoch_shows_each_example_at_most_once(count, size, seed, epoch):
    batches = Shuffled(torch.arange(count), size, seed=seed)
    shown = [batches.at(epoch * len(batches) + i) for i in range(len(batches))]
    assert all(len(batch) == min(size, count) for batch in shown)
    seen = torch.cat(shown)
    assert len(seen.unique()) == len(seen) > count - min(size, count)


def test_a_batch_is_a_pure_function_of_its_number():
    forward, backward = (Shuffled(torch.arange(50), 4, seed=3) for _ in range(2))
    there = [forward.at(n) for n in range(40)]
    back = [backward.at(n) for n in reversed(range(40))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back))
    assert not torch.equal(there[0], forward.at(12))  # another order in the next epoch
    assert not torch.equal(there[0], Shuffled(torch.arange(50), 4, seed=4).at(0))


def test_kinds_of_examples():
    columns = {"x": torch.arange(6), "y": torch.arange(6) * 10}
    batch = Shuffled(columns, 2).at(1)
    assert torch.equal(batch["y"], 10 * batch["x"])
    data = [(torch.tensor(i), i) for i in range(6)]
    left, right = Shuffled(data, 3).at(0)
    assert torch.equal(left, right)
    assert sorted(Shuffled(list(range(4)), 4, collate=list).at(0)) == [0, 1, 2, 3]


def test_in_order():
    assert [InOrder([1, 2, 3]).at(n) for n in range(5)] == [1, 2, 3, 1, 2]
    assert isinstance(InOrder([1]), Batches) and isinstance(Shuffled([1], 1), Batches)


def test_bad_input():
    with pytest.raises(DataError, match="no batches"):
        InOrder([])
    with pytest.raises(DataError, match="generator has not"):
        InOrder(i for i in range(3))
    with pytest.raises(DataError, match="no examples"):
        Shuffled(torch.empty(0, 3), 2)
    with pytest.raises(UsageError, match="size=0"):
        Shuffled([1], 0)


def test_near_seeds_are_unrelated():
    seeds = {mixed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_to_device_goes_into_everything():
    Pair = namedtuple("Pair", "a b")
    batch = {"x": [torch.ones(1), (torch.ones(2), "text")], "pair": Pair(torch.ones(1), None)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"][0].is_meta and moved["x"][1][0].is_meta and moved["x"][1][1] == "text"
    assert isinstance(moved["pair"], Pair) and moved["pair"].a.is_meta
