"""Which chunks share a frequency table: another table must save more than it costs."""

import numpy as np

from laconic.coding.tables import Tables, cross_bits, entropy_bits

TABLE_BITS = 20  # what a table takes in a file, per symbol that occurs
RECENT = 8  # how many earlier tables a histogram is compared with
MOST = 4096  # tables of a book; decoding takes up to 50 KiB for each, however short the file


class TableBook:
    """Tables made as histograms come in, batch by batch; a table is fixed when its batch closes.

    Args:
        groups: only histograms of the same group (byte plane) share tables.

    Attributes:
        tables: the fixed tables, each a `Tables` of one row.

    Example:
        >>> book = TableBook(groups=1)
        >>> histogram = np.bincount([1, 1, 2], minlength=256)
        >>> book.assign(histogram, 0), book.assign(histogram * 100, 0)
        (0, 0)
        >>> book.close_batch()
        >>> len(book.tables)
        1
    """

    def __init__(self, groups: int) -> None:
        self.tables: list[Tables] = []
        self._counts: list[np.ndarray] = []
        self._known: list[list[int]] = [[] for _ in range(groups)]

    def assign(self, counts: np.ndarray, group: int, budget: float = np.inf) -> int:
        """The number of the table for symbols with histogram `counts` (256,); new if need be.

        It is -1 where the symbols, and the table if it is new, would take `budget` bits or more, or
        where no known table will do and the book is full.
        """
        limit = entropy_bits(counts) + TABLE_BITS * int(np.count_nonzero(counts))
        if len(self._counts) == MOST:
            limit = np.inf
        known = self._known[group]
        costs = [self._cost(counts, number) for number in known]
        best = int(np.argmin(costs)) if costs else -1
        if best >= 0 and costs[best] < min(limit, budget):
            number = known[best]
            if number >= len(self.tables):  # still open: its table will be made for this one too
                self._counts[number] = self._counts[number] + counts
            return number
        if limit >= budget:
            return -1
        joint = counts
        for number in known:  # a near miss, for lack of a rare symbol, grows the new table
            merged = self._counts[number] + counts
            if cross_bits(counts, merged) < limit:
                joint = merged
                break
        self._counts.append(joint)
        known.insert(0, len(self._counts) - 1)
        del known[RECENT:]
        return len(self._counts) - 1

    def close_batch(self) -> None:
        """Fixes the tables that are open, each from the joint counts of its users."""
        for counts in self._counts[len(self.tables) :]:
            self.tables.append(Tables.from_counts(counts))

    def _cost(self, counts: np.ndarray, number: int) -> float:
        if number < len(self.tables):
            return float(cross_bits(counts, self.tables[number].frequencies[0].astype(np.int64)))
        return float(cross_bits(counts, self._counts[number] + counts))
