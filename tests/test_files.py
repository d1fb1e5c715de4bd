"""Files that are there whole or not at all."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from laconic.errors import OutputExists
from laconic.files import expect_free, save_json, whole_file


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with whole_file(path) as temporary:
        temporary.write_text("some")
        assert not path.exists()
    assert path.read_text() == "some"
    assert [*path.parent.iterdir()] == [path]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), whole_file(path) as temporary:
        temporary.write_text("ha")
        raise OSError("the disk is full")
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_nothing_is_written_of_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_json(tmp_path / "some.json", {"a": 1, "b": {2}})
    assert not [*tmp_path.iterdir()]


def test_keys_stay_in_order_or_are_sorted(tmp_path: Path) -> None:
    value = {"b": 1, "a": [2]}
    save_json(tmp_path / "a.json", value, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"b": 1, "a": [2]}\n'
    save_json(tmp_path / "a.json", value, sort_keys=True)
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'


def test_many_threads_may_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    values = [{"number": n, "long": "x" * 10_000} for n in range(64)]
    with ThreadPoolExecutor(8) as threads:
        [*threads.map(lambda value: save_json(path, value), values)]
    assert json.loads(path.read_text()) in values
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    expect_free(tmp_path / "new", overwrite=False)
    expect_free(tmp_path, overwrite=True)
    with pytest.raises(OutputExists, match="--overwrite"):
        expect_free(tmp_path, overwrite=False)
