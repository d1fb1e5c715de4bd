import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import sharing
from laconic.coding.sharing import RECENT, TABLE_BITS, TableBook
from laconic.coding.tables import entropy_bits

PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)


def bell(centre, count=10_000, width=3.0):
    return np.bincount(
        np.clip(np.random.default_rng(centre).normal(centre, width, count), 0, 255).astype(int),
        minlength=256,
    )


def test_like_histograms_share_a_table():
    book = TableBook(1)
    assert [book.assign(bell(100), 0) for _ in range(3)] == [0, 0, 0]
    book.close_batch()
    assert book.assign(bell(100), 0) == 0
    book.close_batch()
    assert len(book.tables) == 1


def test_unlike_histograms_do_not():
    book = TableBook(1)
    assert [book.assign(bell(centre), 0) for centre in (50, 150, 50, 150)] == [0, 1, 0, 1]
    book.close_batch()
    assert [book.assign(bell(centre), 0) for centre in (150, 50, 220)] == [1, 0, 2]
    book.close_batch()
    assert [len(table) for table in book.tables] == [1, 1, 1]


def test_groups_are_apart():
    book = TableBook(2)
    assert [book.assign(bell(100), group) for group in (0, 1, 0, 1)] == [0, 1, 0, 1]


def test_open_tables_are_made_for_all_their_users():
    book = TableBook(1)
    first, second = bell(100), bell(100) + np.eye(256, dtype=int)[200]
    assert book.assign(first, 0) == book.assign(second, 0) == 0
    book.close_batch()
    assert np.isfinite(book.tables[0].bits(first + second)).all()


def test_a_near_miss_grows_the_new_table():
    book = TableBook(1)
    first = bell(100)
    second = bell(100) + np.eye(256, dtype=int)[200]
    book.assign(first, 0)
    book.close_batch()
    assert book.assign(second, 0) == 1  # the fixed table lacks symbol 200
    book.close_batch()
    assert np.isfinite(book.tables[1].bits(first + second)).all()
    assert book.assign(second, 0) == 1


def test_a_table_must_pay():
    book = TableBook(1)
    counts = bell(100, 500)
    cost = entropy_bits(counts) + TABLE_BITS * np.count_nonzero(counts)
    assert book.assign(counts, 0, cost) == -1
    assert book.assign(counts, 0, cost + 1) == 0
    book.close_batch()
    assert book.assign(counts, 0, cost) == 0  # it is there already
    assert book.assign(counts, 0, entropy_bits(counts)) == -1
    book.close_batch()
    assert len(book.tables) == 1


def test_a_full_book_shares_what_it_has(monkeypatch):
    monkeypatch.setattr(sharing, "MOST", 2)
    book = TableBook(1)
    centres = (100, 150, 101, 20)
    assert [book.assign(bell(centre), 0, 80_000) for centre in centres] == [0, 1, 0, 1]
    book.close_batch()
    assert book.assign(bell(102), 0, 80_000) == 0
    assert book.assign(bell(220), 0, 80_000) == -1
    assert len(book.tables) == 2


def test_only_recent_tables_are_compared():
    book = TableBook(1)
    centres = [10 + 25 * i for i in range(RECENT + 1)]
    assert [book.assign(bell(centre), 0) for centre in centres] == list(range(RECENT + 1))
    book.close_batch()
    assert book.assign(bell(centres[0]), 0) == RECENT + 1  # forgotten
    assert book.assign(bell(centres[-1]), 0) == RECENT


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(10, 245), st.integers(1, 3000), st.booleans()), min_size=1),
)
def test_every_symbol_can_be_coded_and_sharing_never_costs_more_than_a_table(chunks):
    book = TableBook(1)
    given_tables = []
    for centre, count, last in chunks:
        counts = bell(centre, count)
        given_tables.append((counts, book.assign(counts, 0)))
        if last:
            book.close_batch()
    book.close_batch()
    users = {}
    for counts, number in given_tables:
        assert number < len(book.tables)
        assert np.isfinite(book.tables[number].bits(counts)[0])
        users.setdefault(number, []).append(counts)
    for number, shared in users.items():
        apart = sum(entropy_bits(c) + TABLE_BITS * np.count_nonzero(c) for c in shared)
        joint = sum(float(book.tables[number].bits(c)[0]) for c in shared)
        assert joint <= 1.05 * apart + TABLE_BITS * 256
