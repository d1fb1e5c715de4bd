"""The C library's allocator, told to give large blocks back as soon as they are free.

glibc keeps freed blocks of up to 32 MB for later, in a heap of its own for each thread. A run that
makes and drops large temporary matrices then holds far more memory than it uses.
"""

import ctypes
import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # parameters of mallopt
LARGE = 1 << 20  # bytes from which a block is mapped on its own, which costs a page fault for 4 KiB
ARENAS = 2


def give_back_memory() -> bool:
    """Has free large blocks returned to the system from now on; false where that cannot be told."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_ARENA_MAX, ARENAS))
