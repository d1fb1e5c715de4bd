import sys

import pytest

from laconic import cli


@pytest.fixture
def laconic(monkeypatch, capfd):
    """Runs the command line in this process: (exit code, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["laconic", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        captured = capfd.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run
