"""What imports bring along; `test_lean_import` measures the light ones."""

import subprocess
import sys

import pytest


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*(m for m in ('torch', 'transformers') if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["laconic.registry", "laconic.method", "laconic.allocate.budget", "laconic.coding.framing"],
)
def test_light(module):
    assert loaded_by(f"import {module}") == set()


def test_methods_and_tensors_need_torch_but_no_transformers():
    assert loaded_by("import laconic.quantize.rtn, laconic.tensors.modules") == {"torch"}


def test_public_names():
    import laconic

    for name in set(laconic.__all__) - {"evaluate"}:
        assert getattr(laconic, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        laconic.nothing


def test_evaluate_is_the_package_however_it_is_reached():
    code = "import laconic; a = laconic.evaluate; import laconic.evaluate; assert a is laconic.evaluate; a.compare"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
