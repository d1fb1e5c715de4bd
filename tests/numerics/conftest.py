import pytest
import torch


@pytest.fixture
def on_threads():
    """Calls a function on one and on two threads; both results, as lists of tensors."""
    before = torch.get_num_threads()

    def call(function):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = function()
            found = [found] if isinstance(found, torch.Tensor) else list(found)
            results.append([part for part in found if isinstance(part, torch.Tensor)])
        return results

    yield call
    torch.set_num_threads(before)


@pytest.fixture
def same_bits(on_threads):
    """Checks that a function returns the same bits on one and on two threads."""

    def check(function):
        once, again = on_threads(function)
        assert once
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))

    return check
