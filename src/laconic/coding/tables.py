"""Histograms and frequency tables: the one table format that both entropy coders share.

A table gives each byte value a frequency out of 4096 (12 bits); rANS uses the frequencies as they
are, Huffman derives its code lengths from them, so that either engine reads either table.
"""

from dataclasses import dataclass, field

import numpy as np
from numba import njit

from laconic.coding import varint
from laconic.coding.memory import load_u64
from laconic.errors import CorruptFile, UsageError

PRECISION = 12
TOTAL = 1 << PRECISION
SYMBOLS = 256


@dataclass(frozen=True, eq=False)
class Tables:
    """K frequency tables over byte symbols.

    Attributes:
        frequencies: (K, 256) uint16; each row sums to 4096, a zero means "cannot occur".
        cumulative: (K, 257) uint16, the exclusive running sums of each row.

    Example:
        >>> tables = Tables.from_counts(np.bincount([7, 7, 7, 9], minlength=256)[None])
        >>> tables.frequencies[0, [7, 9]].tolist()
        [3072, 1024]
    """

    frequencies: np.ndarray
    cumulative: np.ndarray = field(init=False, repr=False)
    derived: dict[str, np.ndarray] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        frequencies = np.ascontiguousarray(self.frequencies, dtype=np.uint16)
        if frequencies.ndim != 2 or frequencies.shape[1] != SYMBOLS:
            raise UsageError(f"tables must be (K, {SYMBOLS}), found {frequencies.shape}")
        sums = frequencies.sum(axis=1, dtype=np.int64)
        if (sums != TOTAL).any():
            raise CorruptFile(f"each table must sum to {TOTAL}, found {sums.tolist()[:4]}")
        cumulative = np.zeros((len(frequencies), SYMBOLS + 1), np.uint16)
        np.cumsum(frequencies, axis=1, out=cumulative[:, 1:], dtype=np.uint16)
        object.__setattr__(self, "frequencies", frequencies)
        object.__setattr__(self, "cumulative", cumulative)

    def __len__(self) -> int:
        return len(self.frequencies)

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> "Tables":
        """Tables for the histograms `counts` (K, 256); a row of zeros becomes one certain symbol."""
        counts = np.atleast_2d(np.asarray(counts, dtype=np.int64))
        if counts.ndim != 2 or counts.shape[1] != SYMBOLS or (counts < 0).any():
            raise UsageError(f"histograms must be (K, {SYMBOLS}) and >= 0, found {counts.shape}")
        return cls(np.stack([_normalise(row) for row in counts]))

    def bits(self, counts: np.ndarray) -> np.ndarray:
        """(K,) the ideal length in bits of symbols with histogram `counts` (256,) under each table.

        Infinite where a symbol occurs that the table excludes.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = PRECISION - np.log2(self.frequencies.astype(np.float64))
            total: np.ndarray = np.where(counts > 0, counts * cost, 0.0).sum(axis=1)
        return total

    def to_bytes(self) -> bytes:
        """Compact form: per table the count of symbols, then (gap, frequency) pairs as varints."""
        out = bytearray()
        for row in self.frequencies:
            present = np.flatnonzero(row)
            varint.put(out, len(present))
            last = -1
            for i, symbol in enumerate(present.tolist()):
                varint.put(out, symbol - last - 1)
                if i + 1 < len(present):  # the last frequency is what is left of 4096
                    varint.put(out, int(row[symbol]) - 1)
                last = symbol
        return bytes(out)

    @classmethod
    def read(cls, reader: varint.Reader, count: int) -> "Tables":
        """Reads `count` tables written by `to_bytes`.

        Raises:
            CorruptFile: symbols or frequencies are out of range.
        """
        frequencies = np.zeros((count, SYMBOLS), np.uint16)
        for row in frequencies:
            present = reader.varint(SYMBOLS)
            symbol, left = -1, TOTAL
            for i in range(present):
                symbol += 1 + reader.varint(SYMBOLS)
                frequency = left if i + 1 == present else 1 + reader.varint(TOTAL)
                if symbol >= SYMBOLS or not 0 < frequency <= left:
                    raise CorruptFile(f"{reader.what}: a frequency table is damaged")
                row[symbol] = frequency
                left -= frequency
        return cls(frequencies)


@njit(cache=True, nogil=True)
def entropy_bits(counts):  # type: ignore[no-untyped-def]
    """The order-0 entropy, in bits, of all symbols counted in `counts` (256,) int64."""
    return cross_bits(counts, counts)


@njit(cache=True, nogil=True)
def cross_bits(counts, model):  # type: ignore[no-untyped-def]
    """Bits that symbols counted in `counts` take under the shares of `model`; inf where it has none."""
    total = 0.0
    for count in model:
        total += count
    bits = 0.0
    for symbol in range(counts.size):
        if counts[symbol] and not model[symbol]:
            return np.inf
        if counts[symbol]:
            bits += counts[symbol] * np.log2(total / model[symbol])
    return bits


@njit(cache=True, nogil=True)
def histogram(symbols):  # type: ignore[no-untyped-def]
    """(256,) int64 counts of `symbols` (N,) uint8; eight tallies, so that runs do not stall."""
    tallies = np.zeros((8, 256), np.uint32)
    whole = symbols.size & ~7
    for i in range(0, whole, 8):
        eight = load_u64(symbols, i)
        for j in range(8):
            tallies[j, (eight >> np.uint64(8 * j)) & np.uint64(255)] += np.uint32(1)
    for i in range(whole, symbols.size):
        tallies[0, symbols[i]] += np.uint32(1)
    out = np.zeros(256, np.int64)
    for j in range(8):
        for s in range(256):
            out[s] += tallies[j, s]
    return out


def _normalise(counts: np.ndarray) -> np.ndarray:
    """(256,) frequencies summing to 4096, at least 1 where counts > 0, close to least code length."""
    total = int(counts.sum())
    frequencies = np.zeros(SYMBOLS, np.int64)
    if total == 0:
        frequencies[0] = TOTAL
        return frequencies
    share = counts * (TOTAL / total)
    frequencies = np.where(counts > 0, np.maximum(1, np.rint(share)), 0).astype(np.int64)
    while (excess := int(frequencies.sum()) - TOTAL) != 0:
        frequencies[_cheapest(counts, frequencies, excess > 0)] -= 1 if excess > 0 else -1
    return frequencies


def _cheapest(counts: np.ndarray, frequencies: np.ndarray, take: bool) -> int:
    """The symbol whose frequency can shrink (grow) by one at the least loss (largest gain) in bits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if take:
            loss = counts * np.log2(frequencies / (frequencies - 1.0))
            return int(np.argmin(np.where(frequencies > 1, loss, np.inf)))
        gain = counts * np.log2((frequencies + 1.0) / frequencies)
        return int(np.argmax(np.where(frequencies > 0, gain, -np.inf)))
