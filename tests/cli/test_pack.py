"""`laconic pack`, `unpack`, `verify` and `inspect`, as a user meets them."""

import json

import pytest

from laconic.cli._common import console
from tests.store.files import MAKERS, contents_of, make_all


@pytest.fixture
def folder(tmp_path):
    return make_all(tmp_path / "some-model")


def test_there_and_back(laconic, folder, tmp_path):
    code, out, _ = laconic("pack", folder)
    assert code == 0
    assert f"{len(MAKERS)} files" in out
    assert "%" in out
    assert laconic("verify", f"{folder}.lac")[1].endswith("all as they were\n")
    before = contents_of(folder)
    code, _, err = laconic("unpack", f"{folder}.lac")
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err
    assert laconic("unpack", f"{folder}.lac", "--out", tmp_path / "again")[0] == 0
    assert contents_of(tmp_path / "again") == before


def test_json(laconic, folder, tmp_path):
    small = tmp_path / "small.lac"
    fast = json.loads(laconic("pack", folder, "--json")[1])
    packed = json.loads(laconic("pack", folder, "--small", "--out", small, "--json")[1])
    assert packed["path"] == str(small)
    assert packed["packed"] == small.stat().st_size < fast["packed"]
    assert json.loads(laconic("verify", small, "--json")[1])["raw"] == packed["raw"]
    inspected = json.loads(laconic("inspect", small, "--json")[1])
    assert inspected["stored_bytes"] == packed["packed"]
    out = tmp_path / "again"
    assert json.loads(laconic("unpack", small, "--out", out, "--json")[1])["files"] == len(MAKERS)


def test_inspect_shows_tensors(laconic, folder, monkeypatch):
    monkeypatch.setattr(console, "width", 120)
    laconic("pack", folder)
    code, out, _ = laconic("inspect", f"{folder}.lac")
    assert code == 0
    assert "layers.0.weight" in out
    assert "60x50" in out
    assert "as before" in out
    assert "more: --all" not in out


def test_damage_is_told_in_one_line(laconic, folder):
    laconic("pack", folder)
    archive = folder.with_name("some-model.lac")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    for verb in ("verify", "unpack"):
        code, _, err = laconic(verb, archive, *(["--overwrite"] if verb == "unpack" else []))
        assert (code, err.count("\n")) == (1, 1)
        assert "error" in err
