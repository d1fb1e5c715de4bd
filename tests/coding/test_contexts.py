import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from laconic.coding import contexts, varint
from laconic.coding.contexts import CONTEXT_BITS, ContextBook, ContextTables, joint_histogram
from laconic.errors import CorruptFile

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
joints = arrays.arrays(
    np.int64, (256, 8), elements=st.integers(0, 2**20), fill=st.sampled_from([0, 100])
)


def planes(count, seed=0, lean=0.3, low=100):
    """(symbols, context) whose buckets lean to zero."""
    rng = np.random.default_rng(seed)
    context = rng.integers(low, low + 8, count).astype(np.uint8)
    bucket = rng.geometric(lean, count) - 1 & 7
    rest = rng.integers(0, 32, count)
    return (rest >> 4 << 7 | bucket << 4 | rest & 15).astype(np.uint8), context


def reread(data):
    reader = varint.Reader(data, "test")
    tables = ContextTables.read(reader)
    reader.expect_end()
    return tables


def valid_or_corrupt(data):
    try:
        found = ContextTables.read(varint.Reader(data, "test")).frequencies
    except CorruptFile:
        return
    assert found.min() >= 1 and (found.sum(axis=1, dtype=int) == 128).all()


@PROPERTY
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_joint_histogram(symbols, context):
    count = min(len(symbols), len(context))
    low, top = np.frombuffer(symbols[:count], np.uint8), np.frombuffer(context[:count], np.uint8)
    expected = np.zeros((256, 8), np.int64)
    np.add.at(expected, (top, low >> 4 & 7), 1)
    assert (joint_histogram(low, top) == expected).all()


@PROPERTY
@given(joints)
def test_tables_are_sound_and_every_one_pays(joint):
    made = ContextTables.from_counts(joint)
    frequencies = made.frequencies.astype(np.int64)
    assert frequencies.min() >= 1 and (frequencies.sum(axis=1) == 128).all()
    saved = (joint * np.log2(frequencies / 16)).sum(axis=1)
    assert (saved[made.contexts] > CONTEXT_BITS).all()
    assert (np.flatnonzero(made.lookup) == made.contexts).all()
    assert len(made.tables) == len(made.contexts) + 1
    for context in (*made.contexts[:2], 255):
        row = made.tables.frequencies[made.lookup[context]]
        assert (row == frequencies[context][np.arange(256) >> 4 & 7]).all()
    expected = 8 * joint.sum() - saved.sum()
    assert made.bits(joint) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    if len(made.contexts):
        stored = made.to_bytes()
        assert len(stored) <= 2 + CONTEXT_BITS // 8 * len(made.contexts)
        assert (reread(stored).frequencies == made.frequencies).all()


@PROPERTY
@given(
    count=st.integers(0, 5000),
    seed=st.integers(0, 2**32),
    lean=st.floats(0.05, 1.0),
    other=st.booleans(),
)
def test_round_trip_under_any_tables(count, seed, lean, other):
    symbols, context = planes(count, seed, lean)
    made = ContextTables.from_counts(
        joint_histogram(*planes(9000, seed + 1)) if other else joint_histogram(symbols, context)
    )
    before = symbols.copy(), context.copy()
    stream = made.encode(symbols, context)
    assert (made.decode(stream, context) == symbols).all()
    assert (symbols == before[0]).all() and (context == before[1]).all()
    ideal = made.bits(joint_histogram(symbols, context)) / 8
    assert stream.size <= 1.001 * ideal + 40


def test_fit_is_near_the_entropy():
    symbols, context = planes(200_000)
    joint = joint_histogram(symbols, context)
    used = joint[joint.sum(axis=1) > 0]
    entropy = -(used * np.log2(used / used.sum(axis=1, keepdims=True))).sum() + 5 * symbols.size
    assert ContextTables.from_counts(joint).bits(joint) <= 1.002 * entropy


def test_nothing_to_gain():
    for joint in (np.zeros((256, 8), np.int64), np.full((256, 8), 2**40)):
        made = ContextTables.from_counts(joint)
        assert len(made.contexts) == 0 and len(made.tables) == 1
        with pytest.raises(CorruptFile, match="a set of context tables is empty"):
            reread(made.to_bytes())


def test_one_certain_bucket_in_every_context():
    joint = np.zeros((256, 8), np.int64)
    joint[:, 7] = 1000
    made = ContextTables.from_counts(joint)
    assert (made.frequencies == [1] * 7 + [121]).all()
    assert (reread(made.to_bytes()).frequencies == made.frequencies).all()


@PROPERTY
@given(st.binary(max_size=60))
def test_garbage(data):
    valid_or_corrupt(data)
    valid_or_corrupt(b"\2" + bytes([5, *[16] * 7]) + data)


def test_truncated_or_altered_bytes():
    data = ContextTables.from_counts(joint_histogram(*planes(9000))).to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptFile):
            reread(data[:length])
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            valid_or_corrupt(damaged)


@pytest.mark.parametrize(
    "stored",
    [
        [0],  # no context
        [0x81, 2, *[0, *[17] * 7] * 257],  # more contexts than there are
        [1, 0x80, 2, *[17] * 7],  # context 256
        [2, 0xFF, 1, *[17] * 7, 0, *[17] * 7],  # the second is 256
        [1, 3, 0, *[17] * 6],  # a frequency of zero
        [1, 3, *[16] * 6, 32],  # nothing is left for the last
        [1, 3, *[255] * 7],
    ],
)
def test_impossible_sets(stored):
    with pytest.raises(CorruptFile):
        reread(bytes(stored))


def test_the_last_set_serves_while_it_will_do():
    book = ContextBook()
    like = [joint_histogram(*planes(50_000, seed)) for seed in range(3)]
    unlike = joint_histogram(*planes(50_000, low=30))
    assert [book.assign(joint) for joint in [*like, unlike, unlike, like[0]]] == [0, 0, 0, 1, 1, 2]
    assert [len(tables.contexts) for tables in book.sets] == [8, 8, 8]


def test_a_full_book_makes_no_more_sets(monkeypatch):
    monkeypatch.setattr(contexts, "MOST", 17)
    book = ContextBook()
    found = [book.assign(joint_histogram(*planes(9000, low=20 * k))) for k in range(5)]
    assert found == [0, 1, 1, 1, 1]
