"""Modules of the package that need what is not installed everywhere."""

from importlib.util import find_spec

NEEDS = {"laconic.tensors.triton_products": "triton"}  # comes with CUDA builds of torch


def importable(name: str) -> bool:
    """Whether what the module `name` needs is here."""
    return name not in NEEDS or find_spec(NEEDS[name]) is not None
