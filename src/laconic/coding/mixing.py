"""Symbols of a plane, coded in the context of the plane before it: several adaptive models, mixed.

    plane before:  9 symbols around the place      plane now:  left, above

Four models each know a part of that and give a distribution; what is coded with is their mixture. Each model learns
from every symbol, and so do the shares that the models have, which are kept for each symbol of the plane before.
All is whole numbers, so that a decoder on any machine finds the same.

Source: Kim and Belyaev, 2025 (arXiv 2506.12000), contexts from the checkpoint before; their network is replaced by counts,
and one context by several that are mixed (logistic mixing: Mahoney, PAQ6, 2003; here of probabilities).
"""

import numpy as np
from numba import njit

from laconic.coding import varint
from laconic.errors import CorruptFile, UsageError

SYMBOLS = 16
MODELS = 4
BITS = 16  # of probabilities
ONE = 1 << BITS
FLOOR = 1  # of 2^16, which every symbol has
FAST, SLOW = 4, 7  # shifts by which a model follows, at first and later
LEARN = 18  # shift by which shares follow: a step of 2^-6
LEAST = ONE // 64  # share of a model
SIZES = (16, 20, 320, 256)  # contexts of each model
SHIFTED = 4  # bits of a count of visits in which a shift grows by one


def encode_plane(plane: np.ndarray, before: np.ndarray) -> bytes:
    """Codes a plane of symbols.

    Args:
        plane: (h, w) uint8, below 16.
        before: (h, w) uint8, below 16: what stood there; zeros if nothing did.

    Raises:
        UsageError: shapes that differ, or symbols above 15.

    Example:
        >>> before = (np.arange(4096) % 7 == 0).astype(np.uint8).reshape(64, 64)
        >>> blob = encode_plane(5 * before, before)
        >>> len(blob) < 120, (decode_plane(blob, before) == 5 * before).all().item()
        (True, True)
    """
    plane, before = _checked(plane, before)
    starts, sizes = np.empty(plane.size, np.uint32), np.empty(plane.size, np.uint32)
    _walk(before, plane, starts, sizes)
    words = np.empty(plane.size + 2, np.uint32)
    head = bytearray()
    varint.put(head, plane.size)
    stream: np.ndarray = _pack(starts, sizes, words)
    return bytes(head) + stream.astype("<u4").tobytes()


def decode_plane(blob: bytes | memoryview, before: np.ndarray) -> np.ndarray:
    """The (h, w) symbols of a result of `encode_plane` and the same plane before.

    There is no checksum: altered bytes may give other symbols.

    Raises:
        CorruptFile: truncated, too long, of another size, or altered in a way that shows.
    """
    before = np.ascontiguousarray(before, np.uint8)
    reader = varint.Reader(blob, "plane")
    if reader.varint() != before.size:
        raise CorruptFile(f"plane: it is not of {before.size} symbols")
    rest = reader.rest()
    if len(rest) % 4 or len(rest) < 8:
        raise CorruptFile("plane: it is truncated")
    words = np.frombuffer(rest, "<u4").astype(np.uint32)
    out = np.empty(before.shape, np.uint8)
    if not _unwalk(before, words, out):
        raise CorruptFile("plane: its words do not end where they must")
    return out


def _checked(plane: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if plane.ndim != 2 or plane.shape != before.shape:
        raise UsageError(
            f"two planes of one shape are expected, found {plane.shape} and {before.shape}"
        )
    if max(plane.max(initial=0), before.max(initial=0)) >= SYMBOLS:
        raise UsageError(f"symbols below {SYMBOLS} are expected")
    return np.ascontiguousarray(plane, np.uint8), np.ascontiguousarray(before, np.uint8)


@njit(inline="always")
def _contexts(before, now, i, j, found):  # type: ignore[no-untyped-def]
    """Fills `found` (4,) with the context of each model at (i, j)."""
    height, width = before.shape
    own = before[i, j]
    around = 0
    for y in range(max(0, i - 1), min(height, i + 2)):
        for x in range(max(0, j - 1), min(width, j + 2)):
            around += before[y, x] != 0
    around = (around + 1) // 2 if around < 7 else 4  # 0, 1 to 2, 3 to 4, 5 to 6, 7 to 9
    left = now[i, j - 1] if j else 0
    above = now[i - 1, j] if i else 0
    causal = 2 * (left != 0) + (above != 0)
    found[0] = own
    found[1] = around * 4 + causal
    found[2] = own * 20 + around * 4 + causal
    found[3] = left * SYMBOLS + above


@njit(inline="always")
def _mix(tables, shares, found, own, mixed):  # type: ignore[no-untyped-def]
    """Fills `mixed` (17,) with the cumulative distribution."""
    for s in range(1, SYMBOLS):
        total = 0
        for m in range(MODELS):
            total += shares[own, m] * tables[m, found[m], s]
        total >>= BITS
        mixed[s] = (total * (ONE - SYMBOLS * FLOOR) >> BITS) + s * FLOOR


@njit(inline="always")
def _learn(tables, visits, shares, found, own, mixed, symbol):  # type: ignore[no-untyped-def]
    """Shares grow of models that gave `symbol` more than the mixture did; models move towards it."""
    chance = mixed[symbol + 1] - mixed[symbol]
    total = 0
    for m in range(MODELS):
        table = tables[m, found[m]]
        ratio = ((table[symbol + 1] - table[symbol]) << 12) // chance
        step = shares[own, m] * (min(ratio, 1 << 15) - 4096) >> LEARN
        shares[own, m] = max(LEAST, shares[own, m] + step)
        total += shares[own, m]
        seen = visits[m, found[m]]
        shift = min(FAST + (seen >> SHIFTED), SLOW)
        visits[m, found[m]] = min(seen + 1, 1 << 10)
        for s in range(1, SYMBOLS):
            target = ONE if s > symbol else 0
            table[s] += (target - table[s]) >> shift
    left = ONE
    for m in range(MODELS - 1):
        shares[own, m] = shares[own, m] * ONE // total
        left -= shares[own, m]
    shares[own, MODELS - 1] = left


@njit(cache=True, nogil=True)
def _fresh():  # type: ignore[no-untyped-def]
    """Models that know nothing, and equal shares."""
    tables = np.empty((MODELS, 320, SYMBOLS + 1), np.int64)
    for s in range(SYMBOLS + 1):
        tables[:, :, s] = ONE // SYMBOLS * s
    visits = np.zeros((MODELS, 320), np.int64)
    shares = np.full((SYMBOLS, MODELS), ONE // MODELS, np.int64)
    mixed = np.zeros(SYMBOLS + 1, np.int64)
    mixed[SYMBOLS] = ONE
    return tables, visits, shares, mixed


@njit(cache=True, nogil=True)
def _walk(before, plane, starts, sizes):  # type: ignore[no-untyped-def]
    """The range of 2^16 that each symbol has, in order."""
    tables, visits, shares, mixed = _fresh()
    found = np.zeros(MODELS, np.int64)
    at = 0
    for i in range(plane.shape[0]):
        for j in range(plane.shape[1]):
            _contexts(before, plane, i, j, found)
            own, symbol = np.int64(before[i, j]), np.int64(plane[i, j])
            _mix(tables, shares, found, own, mixed)
            starts[at], sizes[at] = mixed[symbol], mixed[symbol + 1] - mixed[symbol]
            _learn(tables, visits, shares, found, own, mixed, symbol)
            at += 1


@njit(cache=True, nogil=True)
def _unwalk(before, words, out):  # type: ignore[no-untyped-def]
    """Fills `out`; False if words are missing or left over, or the state does not end where it began."""
    tables, visits, shares, mixed = _fresh()
    found = np.zeros(MODELS, np.int64)
    state = np.uint64(words[0]) << np.uint64(32) | np.uint64(words[1])
    at = 2
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            _contexts(before, out, i, j, found)
            own = np.int64(before[i, j])
            _mix(tables, shares, found, own, mixed)
            slot = np.int64(state & np.uint64(ONE - 1))
            symbol = 0
            while mixed[symbol + 1] <= slot:
                symbol += 1
            size = np.uint64(mixed[symbol + 1] - mixed[symbol])
            state = size * (state >> np.uint64(BITS)) + np.uint64(slot - mixed[symbol])
            if state < np.uint64(1 << 31):
                if at == words.size:
                    return False
                state = state << np.uint64(32) | np.uint64(words[at])
                at += 1
            out[i, j] = symbol
            _learn(tables, visits, shares, found, own, mixed, symbol)
    return at == words.size and state == np.uint64(1 << 31)


@njit(cache=True, nogil=True)
def _pack(starts, sizes, words):  # type: ignore[no-untyped-def]
    """The words of a rANS stream of one lane, from its end."""
    state, at = np.uint64(1 << 31), words.size
    for i in range(starts.size - 1, -1, -1):
        size = np.uint64(sizes[i])
        if state >= size << np.uint64(47):  # 2^31 / 2^16 * 2^32
            at -= 1
            words[at] = state & np.uint64(0xFFFFFFFF)
            state >>= np.uint64(32)
        state = (state // size << np.uint64(BITS)) + state % size + np.uint64(starts[i])
    words[at - 1], words[at - 2] = state & np.uint64(0xFFFFFFFF), state >> np.uint64(32)
    return words[at - 2 :]
