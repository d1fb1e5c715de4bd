import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.bench import Bench, Check, Result, Table
from benchmarks.results import update_results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.bench.CACHE", tmp_path / "cache")
    (tmp_path / "zoo" / "plain").mkdir(parents=True)
    (tmp_path / "zoo" / "plain" / "model.safetensors").write_bytes(b"")
    lines = []
    return Bench("area/name", tmp_path / "zoo", tmp_path / "data", "quick", False, lines.append)


def test_checks_count(bench):
    bench.check("holds", True, ours=1.0)
    bench.check("does not", False)
    assert bench.result.failed == 1 and bench.result.checks[0].numbers == {"ours": 1.0}


def test_measurements_are_cached_by_key(bench):
    calls = []
    assert [bench.cached("a", lambda: calls.append(1) or {"x": 1}) for _ in range(3)] == [
        {"x": 1}
    ] * 3
    assert len(calls) == 1
    bench.fresh = True
    bench.cached("a", lambda: calls.append(1))
    assert len(calls) == 2


def test_plain_modules_are_named_by_their_factory(bench):
    assert bench.models()["plain"].startswith("laconic.zoo.resnet:resnet20@")


def test_only_the_models_asked_for(bench):
    bench.only = ["plain"]
    assert list(bench.models()) == ["plain"]
    bench.only = ["other"]
    with pytest.raises(SystemExit, match="no other; there are: plain"):
        bench.models()


def test_results_replace_their_own_section_only(tmp_path):
    file = tmp_path / "results.md"
    first = Result(
        "a/one", "full", [Check("c", True, {"x": 1.23456})], [Table("t", ["k"], [["a|b"]])], ["n"]
    )
    update_results(file, [first, Result("b/two", "quick", [Check("d", False)])])
    update_results(file, [Result("b/two", "full", [Check("d", True)])])
    text = file.read_text()
    assert text.count("## ") == 2 and "x 1.235" in text and "a\\|b" in text and "**no**" not in text


def test_command_line_lists_and_refuses():
    run = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "benchmarks", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    listed = run("--list").stdout.split()
    assert {"coding/blocks", "coding/fuzz", "quantize/rtn", "tensors/stored"} <= set(listed)
    refused = run("nothing")
    assert refused.returncode == 1 and "there are: " in refused.stderr


def test_fuzzer_sees_what_it_looks_for():
    from benchmarks.coding.fuzz import Target, run_target

    def careless(data: bytes) -> int:
        if len(data) < 5:
            raise IndexError("too short")
        return data[0]

    tally = run_target(Target([b"abcdefgh"], careless, True), 300)
    assert any("IndexError" in problem for problem in tally["problems"])
    assert any("accepted" in problem for problem in tally["problems"])
