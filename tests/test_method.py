import json
from dataclasses import dataclass
from typing import Literal

import pytest

from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense


@dataclass(frozen=True)
class Example(LayerMethod):
    """One of every kind of setting."""

    rank: int
    ratio: float = 0.5
    fast: bool = False
    name: str = "x"
    mode: Literal["a", "b", 3] = "a"
    limit: int | None = None
    group: int | Literal["row"] = 64
    either: float | str = 1.0

    paper = Paper(None, "", 2020)

    def compress_weight(self, weight):
        return Dense(weight)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("rank", "8", 8), ("rank", "-1", -1), ("rank", " 8 ", 8), ("ratio", "0.25", 0.25),
        ("ratio", "1e-3", 1e-3), ("ratio", "2", 2.0), ("fast", "true", True), ("fast", "NO", False),
        ("fast", "1", True), ("fast", "0", False), ("name", "7", "7"), ("mode", "b", "b"),
        ("mode", "3", 3), ("limit", "none", None), ("limit", "None", None), ("limit", "5", 5),
        ("group", "row", "row"), ("group", "128", 128), ("either", "2.5", 2.5),
        ("either", "fast", "fast"),
    ],
)  # fmt: skip
def test_text_becomes_values(name, text, expected):
    found = getattr(Example.from_settings({"rank": "1", name: text}), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rank", "4.5", "rank takes a whole number, found '4.5'"), ("rank", "", "whole number"),
        ("rank", "four", "whole number"), ("ratio", "half", "ratio takes a number"),
        ("fast", "maybe", "true or false"), ("mode", "c", "'a' or 'b' or 3"),
        ("limit", "some", "a whole number or none"), ("group", "column", "whole number or 'row'"),
    ],
)  # fmt: skip
def test_text_of_a_wrong_kind(name, text, says):
    with pytest.raises(UsageError, match=says):
        Example.from_settings({"rank": "1", name: text})


def test_unknown_settings_name_the_nearest():
    with pytest.raises(UsageError, match="RTN has no setting 'bitts'; did you mean 'bits'"):
        RTN.from_settings({"bitts": "4"})
    with pytest.raises(UsageError, match="known: bits, group"):
        RTN.from_settings({"zzz": "4"})


def test_a_setting_without_a_default_is_asked_for():
    with pytest.raises(UsageError, match="needs the setting 'rank'"):
        Example.from_settings({})


def test_settings_of_a_wrong_value_are_refused_as_by_the_constructor():
    with pytest.raises(UsageError, match="bits"):
        RTN.from_settings({"bits": "9"})


def test_values_that_are_no_text_are_taken_as_they_are():
    assert RTN.from_settings({"bits": 3, "group": "row"}) == RTN(3, "row")


def test_settings_are_json_and_come_back():
    for method in (RTN(), RTN(2, "row", False, "minmax"), Example(3, limit=4)):
        assert type(method).from_settings(json.loads(json.dumps(method.settings()))) == method


def test_defaults():
    assert Example(1).options() == (Example(1),)
    assert Example.needs is Needs.NOTHING
    with pytest.raises(TypeError):
        LayerMethod()
