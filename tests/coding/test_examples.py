import doctest
import importlib
import pkgutil

import pytest

import laconic.coding

WITHOUT = {"memory"}  # what only works inside a numba kernel has no example
MODULES = [module.name for module in pkgutil.iter_modules(laconic.coding.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"laconic.coding.{name}"))
    assert result.failed == 0
    assert (result.attempted == 0) == (name in WITHOUT)
