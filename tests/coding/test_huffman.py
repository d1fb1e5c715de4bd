import heapq
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import huffman, huffman_tables
from laconic.coding.rans import SHORT
from laconic.coding.tables import PRECISION, Tables, histogram
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)

histograms = st.dictionaries(
    st.integers(0, 255), st.integers(1, 3) | st.integers(1, 2**30), min_size=2
)


def table_of(pairs):
    counts = np.zeros(256, np.int64)
    for symbol, count in pairs.items():
        counts[symbol] = count
    return Tables.from_counts(counts)


def plain_huffman(weights):
    """(total cost, length of the longest code) of an unlimited Huffman code."""
    heap = [(weight, 0) for weight in weights]
    heapq.heapify(heap)
    cost = depth = 0
    while len(heap) > 1:
        (a, deep_a), (b, deep_b) = heapq.heappop(heap), heapq.heappop(heap)
        cost += a + b
        depth = 1 + max(deep_a, deep_b)
        heapq.heappush(heap, (a + b, depth))
    return cost, max(deep for _, deep in heap)


def limited_optimum(weights, limit):
    """The least cost with codes of at most `limit` bits, by exhaustion level by level."""
    ordered = sorted(weights, reverse=True)
    count = len(ordered)
    remaining = [sum(ordered[i:]) for i in range(count)]

    @cache
    def deeper(depth, nodes, placed):
        """The cost below `depth`, with `nodes` free there and `placed` symbols above."""
        costs = [float("inf")]
        for placed_here in range(min(nodes, count - placed) + 1):
            now = placed + placed_here
            if now == count:
                costs.append(0)
            elif depth < limit:
                free = min(2 * (nodes - placed_here), count)
                costs.append(remaining[now] + deeper(depth + 1, free, now))
        return min(costs)

    return remaining[0] + deeper(1, 2, 0)


def check_lengths(frequencies):
    lengths = huffman_tables.code_lengths(frequencies)
    assert ((lengths > 0) == (frequencies > 0)).all() and lengths.max() <= PRECISION
    assert (2.0 ** -lengths[lengths > 0]).sum() == 1
    return int((frequencies.astype(np.int64) * lengths).sum())


@PROPERTY
@given(histograms)
def test_lengths_are_optimal(pairs):
    frequencies = table_of(pairs).frequencies[0]
    cost = check_lengths(frequencies)
    least, longest = plain_huffman(frequencies[frequencies > 0].tolist())
    if longest <= PRECISION:
        assert cost == least
    else:
        assert cost > least


@pytest.mark.parametrize("ratio", [1.3, 1.5, 1.618, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("symbols", [2, 3, 13, 16, 20])
def test_lengths_are_optimal_by_exhaustion(ratio, symbols):
    frequencies = table_of({5 * i: int(ratio**i) + 1 for i in range(symbols)}).frequencies[0]
    cost = check_lengths(frequencies)
    assert cost == limited_optimum(frequencies[frequencies > 0].tolist(), PRECISION)


@pytest.mark.parametrize("symbols", [13, 14, 15, 16])
def test_lengths_are_optimal_where_codes_would_be_longer(symbols):
    frequencies = np.zeros(256, np.int64)
    frequencies[:2] = 1
    for i in range(2, symbols - 1):
        frequencies[i] = frequencies[i - 1] + frequencies[i - 2]
    frequencies[symbols - 1] = 4096 - frequencies.sum()
    weights = frequencies[:symbols].tolist()
    cost = check_lengths(frequencies)
    unlimited, longest = plain_huffman(weights)
    assert cost == limited_optimum(weights, PRECISION)
    assert longest == symbols - 1 and (cost > unlimited) == (longest > PRECISION)
    draws = np.repeat(np.arange(256, dtype=np.uint8), frequencies)
    tables = Tables(frequencies[None])
    stream = huffman.encode(draws, 0, tables)
    assert (huffman.decode(stream, draws.size, 0, tables) == draws).all()


@pytest.mark.parametrize("count", [2, 3, 5, 128, 255, 256])
def test_equal_frequencies(count):
    lengths = huffman_tables.code_lengths(np.repeat([1, 0], [count, 256 - count]))
    assert set(lengths[:count]) <= {count.bit_length() - 1, (count - 1).bit_length()}


def test_one_symbol_and_none():
    frequencies = np.zeros(256, np.int64)
    assert not huffman_tables.code_lengths(frequencies).any()
    frequencies[77] = 4096
    assert huffman_tables.code_lengths(frequencies).nonzero()[0].tolist() == [77]
    assert huffman_tables.code_lengths(frequencies)[77] == 1


@pytest.mark.parametrize("count", [0, 1, 1000, SHORT - 1, SHORT, 50_001])
def test_size_is_that_of_the_lengths(count):
    symbols = np.clip(np.random.default_rng(0).normal(50, 9, count), 0, 255).astype(np.uint8)
    tables = Tables.from_counts(histogram(symbols))
    bits = int(huffman_tables.code_lengths(tables.frequencies[0])[symbols].sum())
    size = huffman.encode(symbols, 0, tables).size
    if count < SHORT:
        assert size == (bits + 7) // 8
    else:  # lengths of three quarters, and a part of a byte for each
        assert 0 <= size - 12 - bits / 8 < 4
    assert huffman.encode(symbols, np.zeros(count, int), tables).size == (bits + 7) // 8


def test_a_code_is_prefix_free_and_decodes_in_one_look():
    tables = table_of({i: 1 + i * i for i in range(40)})
    codes, single = huffman_tables.encode_table(tables)[0], huffman_tables.single_table(tables)[0]
    assert (codes[40:] == huffman.MISSING).all()
    for symbol, entry in enumerate(codes[:40].tolist()):
        code, length = entry & 0x7FFF, entry >> 16
        assert (single[code :: 1 << length] == (symbol | length << 8)).all()
    multi = huffman_tables.multi_table(tables)[0]
    counts = (multi >> np.uint64(56)) & np.uint64(15)
    assert (
        counts.min() == 1
        and counts.max() == 12 // huffman_tables.code_lengths(tables.frequencies[0])[:40].min()
    )


def test_seven_symbols_come_from_one_entry():
    tables = table_of({3: 4095, 4: 1})
    symbols = np.full(SHORT, 3, np.uint8)
    symbols[::100] = 4
    counts = huffman_tables.multi_table(tables)[0] >> np.uint64(56) & np.uint64(15)
    assert counts.max() == huffman.PER_ENTRY
    stream = huffman.encode(symbols, 0, tables)
    assert (huffman.decode(stream, SHORT, 0, tables) == symbols).all()


@pytest.mark.parametrize("count", [100, SHORT])
def test_both_codes_of_a_lone_symbol_decode_to_it(count):
    tables = table_of({9: 1})
    stream = huffman.encode(np.full(count, 9, np.uint8), 0, tables)
    body = stream[12 if count == SHORT else 0 :]
    assert not body.any()
    body[:] = 255
    assert (huffman.decode(stream, count, 0, tables) == 9).all()


@pytest.mark.parametrize("quarter", range(3))
@pytest.mark.parametrize("length", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_impossible_lengths_of_quarters(quarter, length):
    symbols = np.random.default_rng(0).integers(0, 50, 3000).astype(np.uint8)
    tables = Tables.from_counts(histogram(symbols))
    stream = huffman.encode(symbols, 0, tables)
    stream[4 * quarter : 4 * quarter + 4] = np.array([length], "<u4").view(np.uint8)
    with pytest.raises(CorruptFile, match="Huffman stream is damaged"):
        huffman.decode(stream, 3000, 0, tables)


def test_a_count_that_the_bits_cannot_hold_takes_no_memory():
    tables = Tables.from_counts(np.ones(256))
    for count in (25, 10**9, 10**15, 2**62):
        with pytest.raises(CorruptFile, match="3 bytes cannot hold"):
            huffman.decode(np.zeros(3, np.uint8), count, 0, tables)


def test_streams_are_not_longer_than_their_header_can_say(monkeypatch):
    quarter_bytes = huffman.LONGEST // huffman.QUARTERS * PRECISION // 8
    assert quarter_bytes < 2**32
    monkeypatch.setattr(huffman, "LONGEST", 999)
    with pytest.raises(UsageError, match="at most 999 symbols, found 1000"):
        huffman.encode(np.zeros(1000, np.uint8), 0, Tables.from_counts(np.ones(256)))
