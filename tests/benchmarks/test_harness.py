import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.bench import Bench, Check, Result, Table
from benchmarks.results import Section, _sections, update_results

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


def _measured(value, *models):
    checks = [Check(f"{m} int4: better", True, {"x": value}) for m in models]
    return Result(
        "a/one", "full", [*checks, Check("of all of them", value > 1)],
        [Table("t", ["model", "k|k"], [[m, f"{value}|0"] for m in models]), Table("u", ["x"], [[value]])],
        [f"{m}: slow, {value}" for m in models],
    )  # fmt: skip


def test_a_run_on_some_models_leaves_what_is_said_of_others(tmp_path):
    file = tmp_path / "results.md"
    zoo = ["llama-tiny", "opt-tiny", "moe-tiny"]
    update_results(file, [_measured(1, *zoo)])
    update_results(file, [_measured(2, "opt-tiny")], ["opt-tiny"], ["llama-tiny", "moe-tiny"])
    text = file.read_text()
    for model, value in {"llama-tiny": 1, "moe-tiny": 1, "opt-tiny": 2}.items():
        assert text.count(f"| {model} int4: better | yes | x {value} |") == 1
        assert (
            text.count(f"| {model} | {value}\\|0 |") == text.count(f"- {model}: slow, {value}") == 1
        )
        assert text.count(f"{model} int4") == 1
    assert text.count("of all of them") == 1 and "4 of 4 checks hold" in text
    assert "- Measured on llama-tiny, moe-tiny: slice `full`" in text
    assert "- Measured on opt-tiny: slice `full`" in text and "| 1 |\n" not in text
    update_results(file, [_measured(3, "moe-tiny")], ["moe-tiny"], ["llama-tiny", "opt-tiny"])
    text = file.read_text()
    assert [text.count(f"int4: better | yes | x {v} |") for v in (1, 2, 3)] == [1, 1, 1]
    assert "- Measured on llama-tiny: slice" in text


@pytest.mark.parametrize("claim", ["opt-tiny: a", "opt-tiny, 2 bits: a", "opt-tiny int4: a"])
def test_claims_name_their_model_first(tmp_path, claim):
    file = tmp_path / "results.md"
    first, second = Result("a/one", "full"), Result("a/one", "full")
    first.checks.append(Check(claim, True, {}))
    second.checks.append(Check("llama-tiny: a", True, {}))
    update_results(file, [first], ["opt-tiny"], ["llama-tiny"])
    update_results(file, [second], ["llama-tiny"], ["opt-tiny"])
    assert f"| {claim} | yes |" in file.read_text()


def test_what_was_written_before_runs_were_named_can_be_read():
    old = "## a/one\n\n1 of 2 checks hold; slice `full`, 9 s on x, Python 3.11.7.\n\n- a note\n"
    section = Section.parse(old)
    assert section.runs == [("all models", "slice `full`, 9 s on x, Python 3.11.7")]
    assert section.notes == ["a note"]


def test_the_page_is_read_as_it_is_written():
    for text in _sections((ROOT / "docs" / "results.md").read_text()).values():
        section = Section.parse(text)
        again = Section.parse(section.render())
        assert again == section and sum(map(len, section.tables.values())) > 3


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
    from benchmarks.fuzzing import Target, run_target

    def careless(data: bytes) -> int:
        if len(data) < 5:
            raise IndexError("too short")
        return data[0]

    tally = run_target(Target([b"abcdefgh"], careless, True), 300)
    assert any("IndexError" in problem for problem in tally["problems"])
    assert any("accepted" in problem for problem in tally["problems"])
