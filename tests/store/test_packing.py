"""Whole files and folders: packed, unpacked, verified; nothing half-written."""

import os
import subprocess
import sys

import pytest

from laconic.errors import CorruptFile, OutputExists, UsageError
from laconic.store.inspection import inspect_archive
from laconic.store.packing import pack, unpack, verify
from tests.store.files import MAKERS, contents_of, make_all


@pytest.mark.parametrize("threads", [1, 3])
def test_folders(tmp_path, threads):
    folder = make_all(tmp_path / "folder")
    archive, packed = pack(folder, threads=threads)
    assert archive == tmp_path / "folder.lac"
    assert packed.packed == archive.stat().st_size < packed.raw
    assert packed.files == len(MAKERS)
    where, unpacked = unpack(archive, tmp_path / "again", threads=threads)
    assert contents_of(where) == contents_of(folder)
    assert (unpacked.files, unpacked.raw) == (packed.files, packed.raw)
    assert verify(archive, threads=threads).raw == packed.raw


@pytest.mark.parametrize("name", MAKERS)
def test_single_files(tmp_path, name):
    MAKERS[name][0](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    archive, _ = pack(tmp_path / name)
    (tmp_path / name).unlink()
    assert unpack(archive)[0] == tmp_path / name
    assert (tmp_path / name).read_bytes() == data


def test_a_folder_of_one_file_stays_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    archive, _ = pack(tmp_path / "folder", tmp_path / "some.lac")
    assert (unpack(archive)[0] / "a").read_text() == "a"


def test_links_and_rights(tmp_path):
    (tmp_path / "blob").write_text("#!/bin/sh")
    (tmp_path / "blob").chmod(0o755)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "run").symlink_to(tmp_path / "blob")
    where, _ = unpack(pack(tmp_path / "folder")[0], tmp_path / "again")
    assert not (where / "run").is_symlink()
    assert os.access(where / "run", os.X_OK)
    where, _ = unpack(pack(tmp_path / "blob")[0], tmp_path / "alone")
    assert os.access(where, os.X_OK)
    (tmp_path / "folder" / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="dangling: neither a file nor"):
        pack(tmp_path / "folder", overwrite=True)


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path):
    MAKERS["read.me"][0](tmp_path / "a")
    archive, _ = pack(tmp_path / "a")
    for run in (lambda: pack(tmp_path / "a"), lambda: unpack(archive)):
        with pytest.raises(OutputExists, match="--overwrite"):
            run()
    (tmp_path / "a").write_text("other")
    unpack(archive, overwrite=True)
    assert (tmp_path / "a").read_text().startswith("the same again")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputExists, match="is a folder"):
        unpack(archive, tmp_path / "folder", overwrite=True)
    (tmp_path / "folder" / "b").write_text("b")
    packed, _ = pack(tmp_path / "folder")
    with pytest.raises(OutputExists):
        unpack(packed)
    (tmp_path / "folder" / "c").write_text("c")
    unpack(packed, overwrite=True)
    assert contents_of(tmp_path / "folder") == {"b": b"b"}


def test_a_failure_leaves_nothing(tmp_path):
    folder = make_all(tmp_path / "folder")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CorruptFile, match="truncated"):
        pack(folder)
    (folder / "model.safetensors").write_bytes(whole)
    archive, _ = pack(folder)
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CorruptFile):
        unpack(archive, tmp_path / "again")
    with pytest.raises(CorruptFile):
        verify(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.lac"]


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda at: pack(at / "nothing"), "no such file or folder"),
        (lambda at: pack(at / "empty"), "is empty"),
        (lambda at: pack(at / "file", engine="lzma"), "huffman, rans"),
        (lambda at: unpack(at / "nothing.lac"), "no such file"),
        (lambda at: unpack(at / "renamed"), r"does not end with \.lac"),
        (lambda at: unpack(at / "empty.lac", "-"), "a folder cannot go"),
    ],
    ids=["missing", "empty", "engine", "no archive", "no suffix", "to a pipe"],
)
def test_what_cannot_be_done(tmp_path, run, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    pack(tmp_path / "file", tmp_path / "renamed")
    pack(tmp_path / "folder", tmp_path / "empty.lac")
    with pytest.raises(UsageError, match=match):
        run(tmp_path)


def test_pipes(tmp_path):
    MAKERS["model.safetensors"][0](tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    command = [sys.executable, "-m", "laconic"]
    packed = subprocess.run([*command, "pack", "-"], input=data, capture_output=True, check=True)
    assert len(packed.stdout) < 0.9 * len(data)
    again = subprocess.run(
        [*command, "unpack", "-", "--out", "-"], input=packed.stdout, capture_output=True,
        check=True,
    )  # fmt: skip
    assert again.stdout == data


def test_packing_needs_no_torch(tmp_path):
    MAKERS["checkpoint.pt"][0](tmp_path / "a.pt")
    code = (
        "import sys; from laconic.cli import app\n"
        f"app(['pack', {str(tmp_path / 'a.pt')!r}], standalone_mode=False)\n"
        f"app(['verify', {str(tmp_path / 'a.pt.lac')!r}], standalone_mode=False)\n"
        f"app(['inspect', {str(tmp_path / 'a.pt.lac')!r}], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_inspection(tmp_path):
    folder = make_all(tmp_path / "folder")
    archive, packed = pack(folder)
    found = inspect_archive(archive)
    assert (found["raw_bytes"], found["stored_bytes"]) == (packed.raw, packed.packed)
    files = {file["path"]: file for file in found["files"]}
    assert files.keys() == contents_of(folder).keys()
    for file in found["files"]:
        parts = [*file["tensors"], file["rest"]]
        for key in ("raw_bytes", "stored_bytes"):
            assert sum(part[key] for part in parts) <= file[key]
    (weight,) = [t for t in files["checkpoint.pt"]["tensors"] if t["name"] == "model.weight"]
    assert (weight["dtype"], weight["shape"], weight["as"]) == ("F32", [60, 80], "block")
    same = files["model.safetensors"]["tensors"]
    assert [t["as"] for t in same if t["name"].endswith("weight")] == ["block", "as before"]
