import subprocess
import sys

import pytest

from laconic.numerics import allocator

SCRIPT = """
import torch
from laconic.numerics.allocator import give_back_memory
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) << 10
if {on}:
    assert give_back_memory()
big = torch.ones(8 << 20)  # 32 MB: glibc raises its threshold once this is freed
del big
rows = [torch.ones(1 << 20) for _ in range(40)]  # 4 MB each
last = torch.ones(100)
held = resident()
del rows[:-1]
print(held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_free_blocks_go_back():
    freed = int(
        subprocess.run(
            [sys.executable, "-c", SCRIPT.format(on=True)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert freed > 35 * (4 << 20)


def test_where_there_is_no_such_thing(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "win32")
    assert not allocator.give_back_memory()
    monkeypatch.undo()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.give_back_memory()


@pytest.mark.parametrize("refused", [None, allocator.M_MMAP_THRESHOLD, allocator.M_ARENA_MAX])
def test_true_where_the_library_takes_both(monkeypatch, refused):
    told = {}

    class Library:
        def mallopt(self, parameter, value):
            told[parameter] = value
            return int(parameter != refused)

    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Library())
    assert allocator.give_back_memory() == (refused is None)
    assert told[allocator.M_MMAP_THRESHOLD] == allocator.LARGE
