"""A store whose index is in PostgreSQL and whose packs are in S3, by configuration alone."""

import json
import multiprocessing
import os
import uuid

import fsspec
import psycopg
import pytest

from laconic.errors import CorruptFile, LaconicError
from laconic.store import remote
from laconic.store.index import SCHEMA
from laconic.store.store import Store
from tests.store.files import contents_of, make_all
from tests.store.models import save, tuned, weights

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(postgres, s3, tmp_path):
    """The folder of a store, with a database and a bucket of its own."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    fsspec.filesystem("s3", **s3).mkdir(name)
    said = {
        "index": postgres.rpartition("/")[0] + f"/{name}", "packs": f"s3://{name}/packs",
        "options": s3,
    }  # fmt: skip
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text(json.dumps(said))
    return tmp_path / "store"


def files_of(store, name):
    model = store.open(name)
    return {path: b"".join(c.tobytes() for c in model.chunks(path)) for path in model.files}


def test_there_and_back(folder, tmp_path):
    store = Store.configured(folder)
    some = make_all(tmp_path / "some")
    base = save(tmp_path / "base", weights(0))
    after = save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    store.add(some, threads=2)
    alone = store.add(base).stored
    added = store.add(after)
    assert added.model.base.startswith("base@")
    assert added.stored < 0.7 * alone
    again = Store.configured(folder)
    for path in (some, base, after):
        assert files_of(again, path.name) == contents_of(path)
    assert not list(again.damaged())
    assert os.listdir(folder) == ["store.json"]
    assert again.index.totals()["models"] == 3


def test_removing_and_collecting(folder, tmp_path):
    store = Store.configured(folder)
    base = save(tmp_path / "base", weights(0))
    after = save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    store.add(base)
    store.add(after)
    store.remove("base")
    store.collect(grace=0)
    assert files_of(store, "tuned") == contents_of(after)
    store.remove("tuned")
    store.collect(grace=0)
    assert store.index.totals()["objects"] == 0
    assert list(store.packs.names()) == []


def add_some(folder, models, seed):
    store = Store.configured(folder)
    for number in range(3):
        for name, path in models.items():
            store.add(path, f"{name}-{seed}-{number}")
            if number == 1:
                store.remove(f"{name}-{seed}-{number}")
        store.collect(grace=0)


def test_many_at_once(folder, tmp_path):
    models = {
        "base": save(tmp_path / "base", weights(0)),
        "tuned": save(tmp_path / "tuned", tuned(weights(0), 1e-4)),
    }
    work = [SPAWN.Process(target=add_some, args=(folder, models, seed)) for seed in range(3)]
    for process in work:
        process.start()
    for process in work:
        process.join()
    assert [process.exitcode for process in work] == [0, 0, 0]
    store = Store.configured(folder)
    names = {model.name for model in store.index.models()}
    assert names == {f"{m}-{s}-{n}" for m in models for s in range(3) for n in (0, 2)}
    for name in names:
        assert files_of(store, name) == contents_of(models[name.split("-")[0]])


def test_a_failed_add_leaves_nothing(folder, tmp_path, monkeypatch):
    store = Store.configured(folder)

    def fails(*args):
        raise OSError("no connection")

    monkeypatch.setattr(store.packs, "send", fails)
    with pytest.raises(OSError, match="no connection"):
        store.add(save(tmp_path / "base", weights(0)))
    assert store.index.models() == []
    assert list(store.packs.names()) == []


def test_a_pack_that_is_gone(folder, tmp_path):
    store = Store.configured(folder)
    store.add(save(tmp_path / "base", weights(0)))
    for name, _ in list(store.packs.names()):
        store.packs.remove(name)
    with pytest.raises(CorruptFile, match="is not there"):
        store.open("base")


def test_a_database_that_cannot_be_reached():
    with pytest.raises(LaconicError, match="cannot be reached"):
        remote.PostgreSQL("postgresql://laconic@127.0.0.1:1/none", SCHEMA)
