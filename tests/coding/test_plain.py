"""The compiled kernels do what their Python does, and never leave their arrays."""

import numpy as np
import pytest

from laconic.coding import bitpack, contexts, huffman, huffman_tables, planes, rans, tables
from laconic.coding._delta_kernels import kernels_of
from laconic.coding.rans import SHORT
from laconic.coding.tables import Tables
from laconic.errors import CorruptFile, UsageError
from tests.plain import plain

CODERS = {
    "rans": (
        rans,
        plain("laconic.coding.rans", _table=lambda x, i: 0 if x is None else np.int64(x[i])),
    ),
    "huffman": (huffman, plain("laconic.coding.huffman")),
}
COUNTS = (1, 7, 12, SHORT - 1, SHORT, SHORT + 7)
both = pytest.mark.parametrize(("coder", "python"), CODERS.values(), ids=CODERS)


def bell(count, width=9.0):
    return np.random.default_rng(count).normal(100, width, count).clip(0, 255).astype(np.uint8)


def two_tables(symbols):
    counts = np.bincount(symbols, minlength=256)
    return Tables.from_counts(np.stack([counts, counts[::-1] + counts + 1]))


@both
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("index", [0, 1, "mixed"])
def test_the_same_stream(coder, python, count, index):
    symbols = bell(count)
    index = np.arange(count) // 3 % 2 if index == "mixed" else index
    sets = two_tables(symbols)
    stream = coder.encode(symbols, index, sets)
    assert (python.encode(symbols, index, sets) == stream).all()
    assert (python.decode(stream, count, index, sets) == symbols).all()


@both
@pytest.mark.parametrize("count", [1, 12, SHORT])
def test_a_symbol_without_a_code(coder, python, count):
    symbols = np.full(count, 5, np.uint8)
    sets = Tables.from_counts(np.bincount([9], minlength=256)[None].repeat(2, axis=0))
    for index in (0, np.ones(count, np.uint16)):
        with pytest.raises(UsageError, match="a symbol occurs that its frequency table excludes"):
            python.encode(symbols, index, sets)


@both
@pytest.mark.parametrize("count", [12, 300, SHORT + 7])
def test_damage_ends_alike_in_both(coder, python, count):
    """Truncated, longer and altered streams: the same symbols or the same error, all in bounds."""
    symbols, rng = bell(count), np.random.default_rng(0)
    sets, mixed = two_tables(symbols), np.arange(count) % 2
    for index in (0, mixed):
        stream = coder.encode(symbols, index, sets)
        ends = {0, 1, 4, 12, 13, stream.size // 2, stream.size - 2, stream.size - 1}
        damaged = [stream[:end] for end in ends if 0 <= end < stream.size]
        damaged.append(np.append(stream, [0, 0]).astype(np.uint8))
        for at in rng.integers(0, stream.size, 12):
            damaged.append(stream.copy())
            damaged[-1][at] ^= rng.integers(1, 256)
        for bad in damaged:
            assert attempt(python, bad, count, index, sets) == attempt(
                coder, bad, count, index, sets
            )


def attempt(coder, stream, count, index, sets):
    try:
        return coder.decode(stream, count, index, sets).tolist()
    except CorruptFile as error:
        return str(error)


def test_huffman_tables():
    python = plain("laconic.coding.huffman_tables")
    rows = [np.bincount(bell(300, w), minlength=256) for w in (0.1, 2, 40)]
    rows.append(np.r_[2 ** np.arange(20), np.zeros(236, int)])  # lengths reach their limit
    sets, again = Tables.from_counts(np.stack(rows)), Tables.from_counts(np.stack(rows))
    for name in ("encode_table", "single_table", "multi_table"):
        assert (getattr(python, name)(again) == getattr(huffman_tables, name)(sets)).all()


@pytest.mark.parametrize("bits", range(1, 17))
def test_packed_codes(bits):
    python = plain("laconic.coding.bitpack")
    codes = np.random.default_rng(bits).integers(0, 1 << bits, 45)
    packed = bitpack.pack(codes, bits)
    assert (python.pack(codes, bits) == packed).all()
    assert (python.unpack(packed, bits, 45) == codes).all()
    for first in (1, 8, 40):
        part = np.empty(5, np.uint16)
        python.unpack_run(packed, first, bits, part)
        assert (part == codes[first : first + 5]).all()


@pytest.mark.parametrize("layout", sorted(set(planes.LAYOUTS.values()), key=repr), ids=repr)
def test_planes(layout):
    python = plain("laconic.coding.planes")
    raw = np.random.default_rng(0).integers(0, 256, 40 * layout.itemsize).astype(np.uint8)
    elements = planes.words(raw, layout)
    cut = planes.split(elements, layout)
    assert (python.split(elements, layout) == cut).all()
    back = np.empty_like(elements)
    python.join(cut, layout, back)
    assert (back == elements).all()


@pytest.mark.parametrize("count", [0, 5, 8, 61])
def test_counting(count):
    python, symbols = plain("laconic.coding.tables"), bell(count, 30)
    counts = python.histogram(symbols)
    assert (counts == tables.histogram(symbols)).all() and counts.sum() == count
    assert python.entropy_bits(counts) == pytest.approx(tables.entropy_bits(counts))
    model = counts[::-1].copy() + 1
    assert python.cross_bits(counts, model) == pytest.approx(tables.cross_bits(counts, model))
    model[symbols] = 0
    assert python.cross_bits(counts, model) == (np.inf if count else 0)


def test_contexts():
    python = plain("laconic.coding.contexts")
    above = (np.arange(803) % 5).astype(np.uint8)
    symbols = (bell(803, 60) >> above).astype(np.uint8)
    joint = python.joint_histogram(symbols, above)
    assert (joint == contexts.joint_histogram(symbols, above)).all() and joint.sum() == 803
    found, expected = (m.ContextTables.from_counts(joint) for m in (python, contexts))
    assert len(found.contexts) >= 3  # those that pay
    assert (found.frequencies == expected.frequencies).all()
    stream = found.encode(symbols, above)
    assert (stream == expected.encode(symbols, above)).all()
    assert (found.decode(stream, above) == symbols).all()


@pytest.mark.parametrize(
    ("itemsize", "ordered"), [(1, False), (2, True), (4, True), (8, True), (8, False)]
)
@np.errstate(over="ignore")  # as integers do
def test_differences(itemsize, ordered):
    python = plain("laconic.coding._delta_kernels")
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, (2, 60 * itemsize), dtype=np.uint8).view(f"<u{itemsize}")
    values[1, :40] = values[0, :40] + generator.integers(0, 50, 40).astype(values.dtype)
    outcomes = []
    for kernels in (kernels_of(itemsize, ordered), python.kernels_of(itemsize, ordered)):
        counts = np.zeros((256, 256), np.int64)
        bits = int(kernels.count(*values, counts))
        groups = (np.arange(256) // 64).astype(np.uint8)
        tokens, index = np.empty(60, np.uint8), np.empty(60, np.uint16)
        low = np.zeros(bits // 8 + 9, np.uint8)
        kernels.split(*values, groups, tokens, index, low)
        again, out = np.empty_like(index), np.empty_like(values[0])
        kernels.contexts(values[1], groups, again)
        assert kernels.join(
            tokens, np.append(low[: -(-bits // 8)], np.zeros(8, np.uint8)), values[1], out
        )
        assert (out == values[0]).all() and (index == again).all()
        outcomes.append((bits, counts.tolist(), tokens.tolist(), index.tolist(), low.tolist()))
    assert outcomes[0] == outcomes[1]
