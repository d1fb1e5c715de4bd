"""The examples in the docstrings; `tests/coding/test_examples.py` runs those of the coders."""

import doctest
import importlib
import pkgutil

import pytest

import laconic
from tests.optional import importable

PACKAGES = (
    "allocate", "calibrate", "factorize", "measure", "models", "numerics", "prune", "quantize", "tensors",
    "tune", "zoo",
)  # fmt: skip
MODULES = [
    "laconic.budgeting", "laconic.probing", "laconic.compression", "laconic.errors", "laconic.hf", "laconic.job", "laconic.loading", "laconic.method",
    "laconic.planning", "laconic.progress", "laconic.registry",
]  # fmt: skip
MODULES += [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(
        importlib.import_module(f"laconic.{package}").__path__, f"laconic.{package}."
    )
    if importable(module.name)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    assert laconic.__doc__
    finder = doctest.DocTestFinder()
    found = [
        t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples
    ]
    assert len(found) >= 7
