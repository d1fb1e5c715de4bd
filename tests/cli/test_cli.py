"""The command line as a user meets it: output, exit codes, one-line errors, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic.zoo import REFERENCE

KEYS = {
    "method", "settings", "model", "out", "stored_bytes", "dense_bytes", "kept", "bits_per_weight",
    "resident_bits_per_weight", "seconds", "peak_rss_bytes", "layers", "warnings",
}  # fmt: skip


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text((REFERENCE / "test.txt").read_text()[:12_000])
    return file


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The bundled model at 4 bits."""
    from laconic import compress
    from laconic.quantize.rtn import RTN

    out = tmp_path_factory.mktemp("small") / "int4"
    compress(REFERENCE, RTN(bits=4), out=out)
    return out


def test_compress_prints_what_was_done(laconic, tmp_path):
    code, out, _ = laconic(
        "compress", REFERENCE, "--method", "rtn", "--set", "bits=4", "--out", tmp_path / "o"
    )
    assert (
        code == 0
        and "kept on disk" in out
        and "int4 g64" in out
        and "next: laconic evaluate" in out
    )


def test_compress_json_has_the_promised_keys(laconic, tmp_path):
    code, out, _ = laconic(
        "compress",
        REFERENCE,
        "--method",
        "rtn",
        "--set",
        "bits=3",
        "--set",
        "group=row",
        "--out",
        tmp_path / "o",
        "--json",
    )
    report = json.loads(out)
    assert code == 0 and set(report) >= KEYS
    assert report["settings"] == {"bits": 3, "group": "row", "symmetric": True, "range": "mse"}
    assert {"name", "format", "bits_per_weight", "error"} <= set(report["layers"][0])
    stored = sum(p.stat().st_size for p in (tmp_path / "o").glob("*.safetensors"))
    assert report["stored_bytes"] == stored and report["kept"] == stored / report["dense_bytes"]
    assert json.loads((tmp_path / "o" / "laconic.json").read_text()) == report


def test_methods_in_a_row(laconic, tmp_path):
    """The same chain on the command line, in a recipe of words and in one spelled out."""
    spelled = "\n".join(
        ["methods:", "- method: magnitude", "  settings: {pattern: '2:4'}",
         "- {method: rtn, settings: {bits: 5, group: row}}"]
    )  # fmt: skip
    ways = {
        "words": ["--method", "magnitude:pattern=2:4 rtn:bits=5,group=row"],
        "short": "methods: ['magnitude:pattern=2:4', 'rtn:bits=5,group=row']",
        "long": spelled,
    }
    files = []
    for name, way in ways.items():
        if isinstance(way, str):
            (tmp_path / f"{name}.yaml").write_text(way)
            way = ["--recipe", tmp_path / f"{name}.yaml"]
        status, out, _ = laconic("compress", REFERENCE, *way, "--out", tmp_path / name, "--json")
        assert status == 0 and json.loads(out)["method"] == "magnitude + rtn"
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_set_goes_to_the_only_method(laconic, tmp_path):
    words = ("--method", "rtn:bits=3,group=row", "--set", "bits=5")
    _, out, _ = laconic("compress", REFERENCE, *words, "--out", tmp_path / "o", "--json")
    settings = json.loads(out)["settings"]
    assert (settings["bits"], settings["group"]) == (5, "row")


@pytest.mark.parametrize(
    "text",
    ["method: rtn\nsettings: 3", "methods: rtn", "methods: [3]", "methods: [{method: rtn, settings: x}]",
     "methods: []", "method: [rtn]", "methods: [rtn]\nmethod: rtn", "settings: {}", "- rtn", "x: [", ""],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(laconic, tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    words = ("--recipe", tmp_path / "r.yaml", "--out", tmp_path / "o")
    code, _, err = laconic("compress", REFERENCE, *words)
    assert code == 2 and "recipe" in err and not (tmp_path / "o").exists()


def test_formats_that_differ_in_the_number_of_codebooks_are_one_row():
    from laconic.cli.compress import _by_format

    layers = [{"format": f} for f in ("codebook 2 bit d4 x 12", "int4 g64", "codebook 2 bit d4")]
    assert {f: len(rows) for f, rows in _by_format(layers).items()} == {
        "codebook 2 bit d4": 2, "int4 g64": 1,
    }  # fmt: skip


def test_recipe(laconic, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: rtn\nsettings: {bits: 8, group: row}\nalso: [embeddings]\n")
    code, out, _ = laconic(
        "compress", REFERENCE, "--recipe", recipe, "--out", tmp_path / "o", "--json"
    )
    report = json.loads(out)
    assert code == 0 and report["settings"]["bits"] == 8
    assert "model.embed_tokens" in [layer["name"] for layer in report["layers"]]


@pytest.mark.parametrize(
    ("budget", "key", "limit"),
    [("3.5bit", "bits_per_weight", 3.5), ("40%", "kept", 0.40), ("1.5MB", "stored_bytes", 1.5e6)],
)
def test_budgets_are_met(laconic, tmp_path, budget, key, limit):
    code, out, _ = laconic(
        "compress", REFERENCE, "--method", "rtn", "--budget", budget, "--out", tmp_path / "o", "--json"
    )  # fmt: skip
    value = json.loads(out)[key]
    assert code == 0 and 0.97 * limit < value <= limit


@pytest.mark.parametrize(
    ("options", "method", "key", "limit"),
    [
        (["2.3bit"], "ecgptq", "bits_per_weight", 2.3),
        (["3.4bit", "--resident"], "rtn", "resident_bits_per_weight", 3.4),
    ],
)
def test_a_budget_alone_chooses_a_method_and_says_why(
    laconic, tmp_path, options, method, key, limit
):
    code, out, _ = laconic(
        "compress", REFERENCE, "--budget", *options, "--out", tmp_path / "o", "--json"
    )
    report = json.loads(out)
    assert code == 0 and report["method"] == method and 0.98 * limit < report[key] <= limit
    assert report["notes"][0].startswith(f"chosen: {method}, since")


def test_budgets_without_a_method_are_explained(laconic, tmp_path):
    for options, message in (
        (["--budget", "2bit", "--set", "bits=3"], "--set needs --method"),
        (["--method", "rtn", "--resident"], "--resident says what a --budget is of"),
        (["--budget", "0.5x params"], "needs a method that saves that"),
    ):
        code, _, err = laconic("compress", REFERENCE, *options, "--out", tmp_path / "o")
        assert code == 2 and message in err


def test_evaluate_against(laconic, small, text):
    code, out, _ = laconic("evaluate", small, "--against", REFERENCE, "--data", text, "--json")
    report = json.loads(out)
    assert code == 0 and {
        "perplexity",
        "tokens",
        "seconds",
        "stored_bytes",
        "resident_bytes",
    } <= set(report)
    assert {"excess_log_perplexity", "ci95", "flips", "kl_per_token", "speed_ratio"} <= set(
        report["against"]
    )
    assert report["stored_bytes"] == (small / "model.safetensors").stat().st_size
    assert report["resident_bytes"] < REFERENCE.joinpath("model.safetensors").stat().st_size
    assert report["tokens"] % 255 == 0 and report["against"]["excess_log_perplexity"] > 0


def test_evaluate_prints_and_saves_and_report_draws(laconic, small, text, tmp_path):
    code, out, _ = laconic(
        "evaluate",
        small,
        "--against",
        REFERENCE,
        "--data",
        text,
        "--slice",
        "quick",
        "--save",
        tmp_path / "run.json",
    )
    assert code == 0 and "perplexity" in out and "excess log-perplexity" in out
    code, out, _ = laconic("report", tmp_path / "run.json", "--out", tmp_path / "r.html")
    assert code == 0 and "int4" in out
    page = (tmp_path / "r.html").read_text()
    assert "model.layers.0.self_attn.q_proj" in page and "http://" not in page.split("<script>")[0]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_methods(laconic):
    assert "rtn" in laconic("methods")[1]
    described = json.loads(laconic("methods", "rtn", "--json")[1])
    assert {s["name"] for s in described["settings"]} == {"bits", "group", "symmetric", "range"}
    assert "--set bits=4" in laconic("methods", "rtn")[1]


def test_formats(laconic, text, tmp_path):
    words = ("compress", REFERENCE, "--out", tmp_path / "o", "--budget", "4bit", "--resident")
    code, out, error = laconic(*words, "--formats", "rtn fp", "--json")
    assert code == 0, error
    report = json.loads(out)
    assert report["method"] == "mixed" and report["resident_bits_per_weight"] <= 4
    assert laconic(*words, "--formats", "rtn", "--method", "rtn")[0] == 2
    assert laconic("compress", REFERENCE, "--out", tmp_path / "p", "--formats", "auto")[0] == 2


def test_what_a_budget_measures_is_kept(laconic, tmp_path):
    words = ("compress", REFERENCE, "--method", "rtn", "--measured", tmp_path / "tables", "--json")
    for number, budget in enumerate(("6bit", "5bit")):
        code, out, error = laconic(*words, "--budget", budget, "--out", tmp_path / str(number))
        assert code == 0 and json.loads(out)["bits_per_weight"] <= float(budget[0]), error
        assert len([*(tmp_path / "tables").iterdir()]) == 1
    code, _, error = laconic(*words, "--out", tmp_path / "none")
    assert code == 2 and "give a budget" in error


def test_capacity(laconic):
    code, out, _ = laconic("capacity", "rtn:bits=4,group=32", "--json")
    (found,) = json.loads(out)["formats"]
    assert code == 0 and found["format"] == "rtn:bits=4,group=32" and found["resident_bits"] == 4.5
    assert "worth" in laconic("capacity", "rtn")[1]
    assert laconic("capacity", "rtm")[0] == 2


def test_inspect(laconic, small):
    code, out, _ = laconic("inspect", small)
    assert code == 0 and "int4 g64" in out and "rtn" in out
    found = json.loads(laconic("inspect", small, "--json")[1])
    assert found["stored_bytes"] == (small / "model.safetensors").stat().st_size
    assert found["weights"] == sum(row["weights"] for row in found["tensors"])
    dense = json.loads(laconic("inspect", REFERENCE, "--json")[1])
    assert dense["weights"] == found["weights"] and dense["dense_bytes"] == found["dense_bytes"]


def test_demo(laconic, tmp_path):
    code, out, _ = laconic("demo", "--out", tmp_path / "demo")
    assert code == 0 and "int3-g64" in out
    assert (tmp_path / "demo" / "report.html").is_file() and (
        tmp_path / "demo" / "report.png"
    ).is_file()
    assert laconic("demo", "--out", tmp_path / "demo")[0] == 2


BAD = {
    "no such model": (["compress", "nowhere", "--method", "rtn"], 1, "nowhere is not there"),
    "a file": (["compress", str(REFERENCE / "test.txt"), "--method", "rtn"], 1, "is a file"),
    "no config": (["compress", str(REFERENCE.parent), "--method", "rtn"], 1, "no config.json"),
    "unknown method": (["compress", str(REFERENCE), "--method", "rnt"], 2, "did you mean 'rtn'"),
    "unknown setting": (["compress", str(REFERENCE), "--method", "rtn", "--set", "bit=4"], 2, "did you mean 'bits'"),
    "setting of a wrong type": (["compress", str(REFERENCE), "--method", "rtn", "--set", "bits=four"], 2, "bits takes a whole number"),
    "setting out of range": (["compress", str(REFERENCE), "--method", "rtn", "--set", "bits=9"], 2, "2..8"),
    "no method": (["compress", str(REFERENCE)], 2, "give --method"),
    "set of several": (["compress", str(REFERENCE), "--method", "magnitude rtn", "--set", "bits=3"], 2, "put settings behind each"),
    "methods of nothing": (["compress", str(REFERENCE), "--method", " "], 2, "give --method NAME"),
    "no key": (["compress", str(REFERENCE), "--method", "rtn", "--set", "bits"], 2, "KEY=VALUE"),
    "unparsable budget": (["compress", str(REFERENCE), "--budget", "smaller"], 2, "cannot read the budget"),
    "unreachable budget": (["compress", str(REFERENCE), "--method", "rtn", "--budget", "0.1bit"], 2, "the smallest is about"),
    "unreachable size": (["compress", str(REFERENCE), "--method", "rtn", "--budget", "1%"], 2, "the smallest is about"),
    "budget of another kind": (["compress", str(REFERENCE), "--budget", "20ms"], 2, "needs a method that saves that"),
    "unknown part": (["compress", str(REFERENCE), "--method", "rtn", "--also", "embedings"], 2, "did you mean 'embeddings'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(laconic, tmp_path, case):
    words, expected, message = BAD[case]
    code, out, err = laconic(*words, "--out", tmp_path / "o")
    assert code == expected and message in err
    assert out == "" and len(err.strip().splitlines()) == 1 and err.startswith("laconic: error: ")
    assert list(tmp_path.iterdir()) == []


def test_bad_data(laconic, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    for name, message in (
        ("empty.txt", "no text"),
        ("short.txt", "one window"),
        ("none.txt", "no such file"),
    ):
        code, _, err = laconic("evaluate", REFERENCE, "--data", tmp_path / name)
        assert code == 1 and message in err and len(err.strip().splitlines()) == 1


def test_data_that_is_not_used_is_said_and_data_that_is_not_there_refused(laconic, tmp_path, text):
    words = ("compress", REFERENCE, "--method", "rtn", "--out", tmp_path / "o", "--json", "--data")
    assert "needs no data" in json.loads(laconic(*words, text)[1])["warnings"][0]
    code, _, err = laconic(*words, tmp_path / "none.txt", "--overwrite")
    assert code == 1 and "no such file" in err


def test_existing_output_is_kept_without_overwrite(laconic, tmp_path):
    keep = tmp_path / "o" / "precious"
    keep.parent.mkdir()
    keep.write_text("x")
    words = ("compress", REFERENCE, "--method", "rtn", "--out", tmp_path / "o")
    code, _, err = laconic(*words)
    assert code == 2 and "--overwrite" in err and keep.read_text() == "x"
    assert laconic(*words, "--overwrite")[0] == 0 and not keep.exists()


def _copy(tmp_path: Path) -> Path:
    shutil.copytree(REFERENCE, tmp_path / "copy")
    return tmp_path / "copy"


def test_nan_names_the_tensor(laconic, tmp_path):
    copy = _copy(tmp_path)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.4.mlp.up_proj.weight"][2, 3] = torch.nan
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    code, _, err = laconic("compress", copy, "--method", "rtn", "--out", tmp_path / "o")
    assert code == 1 and "model.layers.4.mlp.up_proj.weight holds nan at [2, 3]" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_truncated_weights_are_named(laconic, tmp_path):
    copy = _copy(tmp_path)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    code, _, err = laconic("compress", copy, "--method", "rtn", "--out", tmp_path / "o")
    assert code == 1 and "truncated" in err and "model.safetensors" in err
    code, _, err = laconic("evaluate", copy, "--data", copy / "test.txt")
    assert code == 1 and "truncated" in err


def test_full_disk(laconic, tmp_path):
    """A real full disk: a file system of 1 MB, where it can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        code, _, err = laconic("compress", REFERENCE, "--method", "rtn", "--out", disk / "o")
        assert code == 1 and len(err.strip().splitlines()) == 1 and "cannot write" in err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_ctrl_c_leaves_nothing(tmp_path):
    words = [
        sys.executable,
        "-m",
        "laconic",
        "compress",
        str(REFERENCE),
        "--budget",
        "3bit",
        "--out",
        str(tmp_path / "o"),
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ})
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it had finished already")
    # CPython ends by the signal, whatever the exit code, where extension modules were running code
    assert process.returncode in (1, -signal.SIGINT)
    assert err.count("\n") == 1 and "interrupted; nothing was left" in err
    assert list(tmp_path.iterdir()) == []


def test_report_without_runs(laconic, tmp_path):
    code, _, err = laconic("report", tmp_path, "--out", tmp_path / "r.html")
    assert code == 1 and "no run there" in err
    (tmp_path / "x.json").write_text("{}")
    code, _, err = laconic("report", tmp_path / "x.json", "--out", tmp_path / "r.html")
    assert code == 1 and "not a run of laconic" in err and not (tmp_path / "r.html").exists()


def test_export_and_import(laconic, tmp_path):
    small = tmp_path / "small"
    laconic("compress", REFERENCE, "--method", "rtn", "--set", "group=row", "--out", small)
    code, out, err = laconic("export", small, "--to", "compressed-tensors", "--out", tmp_path / "a")
    assert code == 0 and "35 layers" in out, err
    code, out, _ = laconic("import", tmp_path / "a", "--out", tmp_path / "b", "--json")
    assert code == 0 and json.loads(out)["layers"] > 0
    code, _, err = laconic("export", small, "--to", "onnx", "--out", tmp_path / "c")
    assert code == 2 and "unknown format 'onnx'" in err
    code, _, err = laconic("import", REFERENCE, "--out", tmp_path / "c")
    assert code == 1 and "can be imported" in err and not (tmp_path / "c").exists()


def test_capacity_with_runs(laconic, tmp_path):
    rows = ["parameters,tokens,format,loss"]
    for n in (1e5, 1e6, 1e7):
        for d in (1e7, 1e8):
            rows.append(f"{n},{d},dense,{400 / n**0.34 + 1200 / d**0.36 + 1.8}")
        rows.append(f"{n},1e8,rtn:bits=4,{400 / (0.9 * n) ** 0.34 + 1200 / 1e8**0.36 + 1.8}")
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(rows))
    code, out, err = laconic("capacity", "--runs", file, "--json")
    assert code == 0, err
    assert json.loads(out)["formats"][0]["rho"] == pytest.approx(0.9, rel=0.02)
    code, out, _ = laconic("capacity", "--runs", file)
    assert code == 0 and "rtn:bits=4" in out and "rho" in out
    code, _, err = laconic("capacity", "--runs", tmp_path / "none.csv")
    assert code == 1 and "no such file" in err
