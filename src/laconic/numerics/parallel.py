"""The same bits on any number of threads: work is split over workers that compute on one thread each.

Matrix products and factorisations may round differently when a library splits them over its own
threads. Here whole tasks are given to workers instead, so that no sum depends on how many there are.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and its LAPACK compute on one thread inside; factorisations must, to repeat their bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parallel_map(
    function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None
) -> list[R]:
    """`[function(item) for item in items]` with every call on one thread, several at a time.

    Args:
        function: must not depend on the order in which items are taken.
        items: one task each.
        workers: calls at a time; as many as torch has threads by default.

    Returns:
        Results in the order of `items`. The first error stops the others and is raised.

    Example:
        >>> parallel_map(lambda n: n * n, range(4))
        [0, 1, 4, 9]
    """
    tasks = list(items)
    before = torch.get_num_threads()
    count = min(workers or before, len(tasks))
    if count <= 1:
        with one_thread():
            return [function(task) for task in tasks]
    # inference mode and autograd are settings of a thread: workers inherit the caller's
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def call(task: T) -> R:
        torch.set_num_threads(1)  # each time: MKL has one number for all threads
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(task)

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        _load_cuda_factorisations()
    futures = [_pool(count).submit(call, task) for task in tasks]
    try:
        return [future.result() for future in futures]
    finally:
        wait([future for future in futures if not future.cancel()])
        torch.set_num_threads(before)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that stay: a call costs microseconds then. Their own maps run where they are."""
    return ThreadPoolExecutor(workers, thread_name_prefix="laconic")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not come along


@cache
def _load_cuda_factorisations() -> None:
    """Torch loads them at the first call, which two threads must not make at the same time."""
    torch.linalg.inv(torch.eye(1, device="cuda"))
