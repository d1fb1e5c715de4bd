import json
from collections import Counter

import numpy as np
import pytest

from laconic.allocate.depth import DepthSpace
from laconic.allocate.evolution import Evolution, brute_force, evolve
from laconic.allocate.spaces import TableSpace
from laconic.errors import CorruptFile, LaconicError, UsageError

COST = np.array([[2.0, 3, 4]] * 5 + [[4.0, 6, 8]] * 3)
SETTINGS = {
    "generations": 8, "offspring": 12, "survivors": (4, 2, 1), "samples": (2, 4, 8),
    "initial": 5, "seed": 3,
}  # fmt: skip


class Loss:
    """A sum over units, a term that couples neighbours, and noise that falls with the samples."""

    def __init__(self, units, noise=0.1):
        self.weight = np.random.default_rng(units).random(units) * 10
        self.noise, self.calls, self.states = noise, [], []

    def __call__(self, state, samples, seed):
        self.calls.append((state, samples, seed))
        levels = np.array(state)
        noise = np.random.default_rng([seed, *state]).normal() * self.noise / samples
        coupled = (levels[1:] * levels[:-1]).sum()
        return float((self.weight * 0.3**levels).sum() + 0.2 * coupled + noise)


def space(**more):
    return TableSpace(COST, 3.0 * 5 + 6.0 * 3, **more)


def search(log=None, loss=None, **changes) -> Evolution:
    return evolve(space(), loss or Loss(8), log=log, **{**SETTINGS, **changes})


class TestSearch:
    def test_finds_the_best_of_all(self):
        loss = Loss(8, noise=0)
        best = brute_force(space(), loss, samples=1)
        found = search(loss=loss, generations=25, seed=1)
        assert found.state == next(iter(best)) and found.fitness == min(best.values())
        assert list(best.values()) == sorted(best.values())

    @pytest.mark.parametrize("seed", range(5))
    def test_drops_the_units_that_matter_least(self, seed):
        """Linear fitness, k of n: found in about k(n-k) / offspring generations."""
        weight = np.random.default_rng(7).permutation(20)
        target = DepthSpace(["block"] * 20, 6)

        def loss(state, samples, seed):
            return float((weight * (1 - np.array(state))).sum())

        found = evolve(target, loss, generations=30, offspring=8, seed=seed)
        assert sorted(weight[target.dropped(found.state)]) == list(range(6))

    def test_the_same_seed_gives_the_same_result(self):
        one, other = search(), search()
        assert one == other
        assert search(seed=4).history != one.history

    def test_every_state_that_is_measured_meets_the_budget(self, tmp_path):
        loss = Loss(8)
        log = tmp_path / "log"
        search(log, loss)
        assert {space().spent(state) for state, _, _ in loss.calls} == {33.0}
        lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        assert len(lines) == len(loss.calls) and {line["spent"] for line in lines} == {33.0}

    def test_the_space_is_left_in_the_best_state(self):
        placed = []
        found = evolve(space(place=placed.append), Loss(8), **SETTINGS)
        assert placed[-1] == found.state


class TestStages:
    def test_few_go_on_to_more_samples(self):
        loss = Loss(8)
        search(loss=loss, generations=1, initial=1)
        assert Counter(samples for _, samples, _ in loss.calls) == {2: 12 + 1, 4: 4, 8: 2 + 1}

    def test_states_of_a_stage_see_the_same_samples_and_stages_others(self):
        loss = Loss(8)
        search(loss=loss)
        draws = {}
        for _, samples, seed in loss.calls:
            draws.setdefault(seed, set()).add(samples)
        assert all(len(samples) == 1 for samples in draws.values())
        assert len(draws) == 1 + 3 * 8

    def test_the_parent_joins_in_the_last_stage_only(self):
        loss = Loss(8)
        history = search(loss=loss, initial=1).history
        parents = [entry.state for entry in history]
        by_generation = [loss.calls[1 + 19 * g : 1 + 19 * (g + 1)] for g in range(8)]
        for parent, calls in zip(parents, by_generation):
            assert parent not in [state for state, samples, _ in calls if samples < 8]
            assert (parent, 8) in [(state, samples) for state, samples, _ in calls]

    def test_offspring_are_different(self):
        loss = Loss(8)
        search(loss=loss, generations=3)
        for seed in {seed for _, _, seed in loss.calls}:
            states = [state for state, _, s in loss.calls if s == seed]
            assert len(states) == len(set(states))

    def test_of_equals_the_parent_stays(self):
        found = search(loss=lambda state, samples, seed: 1.0)
        assert len({entry.state for entry in found.history}) == 1

    def test_what_is_not_a_number_loses(self):
        start = (1,) * 8

        def loss(state, samples, seed):
            return float("nan") if state != start else 5.0

        found = evolve(space(start=start), loss, **SETTINGS)
        assert found.state == start and found.fitness == 5.0

    def test_history_counts(self):
        loss = Loss(8)
        history = search(loss=loss).history
        assert [entry.number for entry in history] == list(range(9))
        assert history[-1].evaluations == len(loss.calls)
        assert history[-1].samples == sum(samples for _, samples, _ in loss.calls)
        assert {entry.spent for entry in history} == {33.0}

    def test_a_space_with_one_state_ends_at_once(self):
        found = evolve(TableSpace(np.array([[1.0, 2]]), 2), Loss(1), **SETTINGS)
        assert found.state == (1,) and len(found.history) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search and its log."""
    log = tmp_path_factory.mktemp("log") / "deep" / "log.jsonl"
    return search(log), log.read_bytes()


class TestResume:
    def test_a_log_changes_nothing(self, whole):
        assert whole[0] == search()

    @pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.33, 0.5, 0.77, 0.99, 1])
    @pytest.mark.parametrize("inside", [False, True])
    def test_goes_on_where_it_was_killed(self, whole, tmp_path, share, inside):
        """At any line, and within one."""
        expected, data = whole
        lines = data.splitlines(keepends=True)
        left = b"".join(lines[: round(share * len(lines))])
        left = data[: len(left) + 17] if inside else left
        log, loss = tmp_path / "log", Loss(8)
        log.write_bytes(left)
        assert search(log, loss) == expected
        assert log.read_bytes() == data
        assert len(loss.calls) == len(lines) - 1 - max(0, left.count(b"\n") - 1)

    def test_every_line(self, whole, tmp_path):
        expected, data = whole
        lines = data.splitlines(keepends=True)
        for count in range(0, len(lines), 7):
            log = tmp_path / "log"
            log.write_bytes(b"".join(lines[:count]))
            assert search(log) == expected and log.read_bytes() == data

    def test_a_killed_fitness(self, whole, tmp_path):
        class Killed(Loss):
            def __call__(self, state, samples, seed):
                if len(self.calls) == 40:
                    raise KeyboardInterrupt
                return super().__call__(state, samples, seed)

        log = tmp_path / "log"
        with pytest.raises(KeyboardInterrupt):
            search(log, Killed(8))
        assert len(log.read_bytes().splitlines()) == 41
        assert search(log) == whole[0]

    def test_more_generations_go_on(self, whole, tmp_path):
        log, loss = tmp_path / "log", Loss(8)
        log.write_bytes(whole[1])
        longer = search(log, loss, generations=10)
        assert longer.history[:9] == whole[0].history and longer == search(generations=10)
        assert 0 < len(loss.calls) <= 2 * 19

    def test_infinite_losses_come_back(self, tmp_path):
        log = tmp_path / "log"

        def loss(state, samples, seed):
            return float("inf")

        first = search(log, loss)
        assert search(log, None) == first

    @pytest.mark.parametrize("change", [{"seed": 9}, {"samples": (2, 4, 9)}, {"offspring": 13}])
    def test_the_log_of_another_search(self, whole, tmp_path, change):
        log = tmp_path / "log"
        log.write_bytes(whole[1])
        (name,) = change
        with pytest.raises(UsageError, match=rf"another search \({name} differ\)"):
            search(log, **change)
        assert log.read_bytes() == whole[1]

    def test_the_log_of_another_space_or_fitness(self, whole, tmp_path):
        log = tmp_path / "log"
        log.write_bytes(whole[1])
        other = TableSpace(COST + 1, 41.0)
        with pytest.raises(UsageError, match=r"another search \(space differ\)"):
            evolve(other, Loss(8), log=log, **SETTINGS)
        loss = Loss(8)
        loss.fingerprint = "other data"
        with pytest.raises(UsageError, match=r"another search \(space differ\)"):
            search(log, loss)

    @pytest.mark.parametrize("line", [b"{}", b"]", b"\xff", b'{"generation":1,"stage":0}', b"3"])
    def test_damaged_lines(self, whole, tmp_path, line):
        log = tmp_path / "log"
        lines = whole[1].splitlines()
        lines[5] = line
        log.write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(CorruptFile, match="line 6: not of a search"):
            search(log)

    @pytest.mark.parametrize("line", [b"]", b"3", b"[1]"])
    def test_something_else_altogether(self, tmp_path, line):
        log = tmp_path / "log"
        log.write_bytes(line + b"\n")
        with pytest.raises(CorruptFile, match="line 1: not of a search"):
            search(log)
        assert log.read_bytes() == line + b"\n"


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"generations": -1}, "0 or more"),
            ({"seed": -1}, "0 or more"),
            ({"offspring": 0}, "1 or more"),
            ({"initial": 0}, "1 or more"),
            ({"survivors": (4, 1)}, "of the same stages"),
            ({"survivors": (), "samples": ()}, "of the same stages"),
            ({"samples": (0, 4, 8)}, "of the same stages"),
            ({"survivors": (4, 2, 2)}, "must fall to 1"),
            ({"survivors": (2, 4, 1)}, "must fall to 1"),
            ({"samples": (4, 2, 8)}, "must rise"),
        ],
    )
    def test_settings(self, change, message):
        with pytest.raises(UsageError, match=message):
            search(**change)

    def test_a_space_that_breaks_its_budget(self):
        class Careless(TableSpace):
            def mutate(self, rng, state):
                return (2, *state[1:])

        with pytest.raises(LaconicError, match="Careless made a state over its budget"):
            evolve(Careless(COST, 33.0, start=(1,) * 8), Loss(8), **SETTINGS)

    def test_too_many_states_to_go_through(self):
        with pytest.raises(UsageError, match="too many to go through"):
            brute_force(TableSpace(np.array([[1.0, 2]] * 60), 90), Loss(60), samples=1)
        with pytest.raises(UsageError, match="between 1 and 10 are expected"):
            brute_force(space(), Loss(8), samples=1, limit=10)
        with pytest.raises(UsageError, match="0 states hold the budget"):
            brute_force(TableSpace(np.array([[0.0, 4], [0, 5]]), 6), Loss(2), samples=1)
