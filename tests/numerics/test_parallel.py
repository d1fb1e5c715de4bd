import threading
import time

import pytest
import torch

from laconic.numerics.parallel import one_thread, parallel_map


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_keep_their_order(two_threads):
    def slow(n):
        time.sleep(0.02 * (3 - n))
        return n

    assert parallel_map(slow, range(4)) == [0, 1, 2, 3]


def test_workers_compute_on_one_thread_and_the_caller_gets_its_threads_back(two_threads):
    assert parallel_map(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
    assert torch.get_num_threads() == 2
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_several_run_at_a_time(two_threads):
    meet = threading.Barrier(2, timeout=20)
    parallel_map(lambda _: meet.wait(), range(2))


def test_a_failure_is_raised_and_leaves_the_threads_alone(two_threads):
    def fail(n):
        raise ZeroDivisionError(n)

    with pytest.raises(ZeroDivisionError):
        parallel_map(fail, range(5))
    with pytest.raises(RuntimeError), one_thread():
        raise RuntimeError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_bits_for_any_number_of_workers(two_threads, workers):
    x = torch.randn(6, 150, 80, generator=torch.Generator().manual_seed(0))
    once = parallel_map(lambda a: a.T @ a, x, workers=1)
    again = parallel_map(lambda a: a.T @ a, x, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_workers_inherit_the_autograd_mode(two_threads):
    with torch.inference_mode():
        assert parallel_map(lambda _: torch.is_inference_mode_enabled(), range(2)) == [True] * 2
    with torch.no_grad():
        assert parallel_map(lambda _: torch.is_grad_enabled(), range(2)) == [False] * 2


def test_nothing_to_do():
    assert parallel_map(str, []) == []
