from itertools import count, islice

import pytest

from laconic.progress import SILENT


def test_silent_passes_items_on(capsys):
    assert list(SILENT.track([3, 1, 2], "numbers", total=3)) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_silent_takes_what_is_asked_for():
    source = count()
    assert list(islice(SILENT.track(source, "numbers"), 2)) == [0, 1]
    assert next(source) == 2


def test_silent_lets_errors_through():
    with pytest.raises(ZeroDivisionError):
        list(SILENT.track((1 // n for n in (1, 0)), "numbers"))
