"""`import laconic` and the light verbs load nothing heavy, and start at once."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "numba", "matplotlib", "plotly")


def _loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def test_import_loads_nothing_heavy() -> None:
    assert _loaded_after("import laconic") == set()


def test_listing_methods_loads_nothing_heavy() -> None:
    code = "import sys\nsys.argv = ['laconic', 'methods']\nfrom laconic.cli import app\napp(standalone_mode=False)"
    assert _loaded_after(code) == set()


def test_coding_needs_no_torch() -> None:
    assert not _loaded_after(
        "import laconic.coding.blocks, laconic.coding.framing, laconic.store.packing"
    ) & {
        "torch",
        "transformers",
    }


@pytest.mark.parametrize(
    ("code", "limit"), [("import laconic", 0.3), ("from laconic.cli import app", 1.0)]
)
def test_import_time(code: str, limit: float) -> None:
    """The best of five, inside the interpreter: a busy machine only ever makes it slower."""
    script = f"import time; t = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    times = [
        float(
            subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        )
        for _ in range(5)
    ]
    assert min(times) < limit


def test_help_answers_within_a_second() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "laconic", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 1.0
