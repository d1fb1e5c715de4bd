"""`laconic store`, as a user meets it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.store.files import contents_of
from tests.store.models import save, tuned, weights


@pytest.fixture
def hub(laconic, tmp_path, monkeypatch):
    """A store of a base and a fine-tune."""
    monkeypatch.setenv("LACONIC_STORE", str(tmp_path / "hub"))
    save(tmp_path / "base", weights(0))
    save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    assert laconic("store", "add", tmp_path / "base", "--name", "some/base")[0] == 0
    code, out, _ = laconic("store", "add", tmp_path / "tuned")
    assert code == 0
    assert "as the difference from some/base@" in out
    return tmp_path / "hub"


def test_there_and_back(laconic, hub, tmp_path):
    assert laconic("store", "get", "some/base", tmp_path / "again")[0] == 0
    assert contents_of(tmp_path / "again") == contents_of(tmp_path / "base")
    code, _, err = laconic("store", "get", "tuned", tmp_path / "again")
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err


def test_lists(laconic, hub):
    out = laconic("store", "ls")[1]
    assert "some/base" in out
    assert "tuned" in out
    models = json.loads(laconic("store", "ls", "--json")[1])["models"]
    assert [model["name"] for model in models] == ["some/base", "tuned"]
    assert models[1]["base"] == f"some/base@{models[0]['revision']}"
    assert "model.safetensors" in laconic("store", "ls", "tuned")[1]
    files = json.loads(laconic("store", "ls", "tuned", "--json")[1])["files"]
    assert {file["path"] for file in files} == {"config.json", "model.safetensors"}


def test_what_it_saves(laconic, hub):
    out = laconic("store", "stat")[1]
    assert "2 models" in out
    assert "100.0%" in out
    assert max(map(len, out.splitlines())) <= 80
    totals = json.loads(laconic("store", "stat", "--json")[1])
    assert totals["raw"] >= totals["files"] >= totals["tensors"] > totals["stored"]


def test_removal(laconic, hub, tmp_path):
    assert laconic("store", "rm", "some/base")[0] == 0
    assert "0 objects" in laconic("store", "gc")[1]
    assert json.loads(laconic("store", "gc", "--now", "--json")[1])["objects"] > 0
    assert laconic("store", "get", "tuned", tmp_path / "again")[0] == 0
    code, _, err = laconic("store", "rm", "some/base")
    assert (code, err.count("\n")) == (2, 1)


def test_verification(laconic, hub):
    assert "all as it was" in laconic("store", "verify")[1]
    for name in os.listdir(hub / "packs"):
        path = hub / "packs" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    code, out, _ = laconic("store", "verify")
    assert code == 1
    assert "damaged: object" in out
    assert "needs it: some/base" in out
    found = json.loads(laconic("store", "verify", "--json")[1])
    assert {model["name"] for model in found["models"]} == {"some/base", "tuned"}


@pytest.mark.parametrize(
    "words", [("ls",), ("stat",), ("get", "a"), ("rm", "a"), ("gc",), ("verify",)]
)
def test_no_store(laconic, tmp_path, words):
    code, _, err = laconic("store", *words, "--store", tmp_path)
    assert code == 2
    assert "no store is there" in err
    assert not [*tmp_path.iterdir()]


def test_serving(hub, tmp_path):
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "laconic", "store", "serve", "--port", str(port)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert f"HF_ENDPOINT=http://127.0.0.1:{port}" in process.stdout.readline()
        url = f"http://127.0.0.1:{port}/tuned/resolve/main/config.json"
        for _ in range(200):
            try:
                with urllib.request.urlopen(url) as answer:
                    assert answer.read() == (tmp_path / "tuned" / "config.json").read_bytes()
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        else:
            raise AssertionError("it never answers")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
