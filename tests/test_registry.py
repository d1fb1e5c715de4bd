import ast
import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import laconic
from laconic.errors import UsageError
from laconic.method import Method, Needs, Paper
from laconic.registry import ENTRIES, Entry, Kind, find, name_of
from tests.optional import importable

SOURCE = Path(laconic.__file__).parent


@pytest.mark.parametrize("name", ENTRIES)
class TestEveryEntry:
    def test_loads_and_is_named_back(self, name):
        cls = ENTRIES[name].load()
        assert isinstance(cls, type)
        assert name_of(cls) == name

    def test_summary_is_the_first_line_of_the_docstring(self, name):
        entry = ENTRIES[name]
        assert entry.load().__doc__.splitlines()[0] == entry.summary

    def test_name_is_spelt_for_a_command_line(self, name):
        assert name == name.lower() and " " not in name

    def test_is_found(self, name):
        assert find(name, ENTRIES[name].kind) is ENTRIES[name]


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.kind is Kind.METHOD])
def test_methods_are_frozen_dataclasses_that_name_their_source(name):
    cls = ENTRIES[name].load()
    assert issubclass(cls, Method)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert isinstance(cls.paper, Paper) and isinstance(cls.needs, Needs)
    assert cls.taxonomy and all(isinstance(term, str) for term in cls.taxonomy)


def test_every_concrete_method_of_the_package_is_registered():
    for module in pkgutil.walk_packages(laconic.__path__, "laconic."):
        if "cli" not in module.name and importable(module.name):
            importlib.import_module(module.name)
    stack, found = [Method], set()
    while stack:
        cls = stack.pop()
        stack += cls.__subclasses__()
        own = cls.__module__.startswith("laconic.") and not cls.__name__.startswith("_")
        if own and not cls.__abstractmethods__:
            found.add(f"{cls.__module__}:{cls.__qualname__}")
    registered = {e.path for e in ENTRIES.values() if e.kind is Kind.METHOD}
    assert found - {"laconic.method:Method"} == registered


def test_names_are_unique_in_the_source():
    """A dictionary literal keeps the last of two equal keys without a word."""
    tree = ast.parse((SOURCE / "registry.py").read_text())
    (table,) = [
        node.value for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ENTRIES"
    ]  # fmt: skip
    assert len(table.keys) == len(ENTRIES)


def test_unknown_names():
    with pytest.raises(UsageError, match="unknown method 'rnt'; did you mean 'rtn'"):
        find("rnt")
    with pytest.raises(UsageError, match="unknown quantizer 'rtn'"):
        find("rtn", Kind.QUANTIZER)


def test_classes_that_are_not_registered_have_their_own_name():
    assert name_of(Entry) == "Entry"


def test_listing_the_registry_loads_nothing_heavy():
    code = "import sys, laconic.registry; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
