"""Packs that fsspec keeps, and stores by configuration; `tests/services` has PostgreSQL and S3."""

import json

import pytest

from laconic.errors import CorruptFile, LaconicError
from laconic.store.packs import Place
from laconic.store.store import Store
from tests.store.files import contents_of
from tests.store.models import save, tuned, weights

remote = pytest.importorskip("laconic.store.remote")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "store").mkdir()
    said = {"packs": f"file://{tmp_path}/elsewhere/packs"}
    (tmp_path / "store" / "store.json").write_text(json.dumps(said))
    return tmp_path / "store"


def test_there_and_back(folder, tmp_path):
    store = Store.configured(folder)
    base = save(tmp_path / "base", weights(0))
    after = save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    store.add(base)
    store.add(after)
    assert len(list(store.packs.names())) == 2
    for path in (base, after):
        model = Store.configured(folder).open(path.name)
        found = {name: b"".join(c.tobytes() for c in model.chunks(name)) for name in model.files}
        assert found == contents_of(path)
    store.remove("base")
    store.remove("tuned")
    store.collect(grace=0)
    assert list(store.packs.names()) == []
    assert [p.name for p in (tmp_path / "elsewhere" / "packs").iterdir()] == []


def test_packs(tmp_path):
    packs = remote.ObjectPacks(f"file://{tmp_path}/packs")
    assert list(packs.names()) == []
    writer = packs.writer()
    place = writer.add(bytes(32), b"some bytes")
    assert list(packs.names()) == []  # nobody sees it before it is complete
    writer.close()
    assert packs.read(place) == b"some bytes"
    ((name, written),) = packs.names()
    assert (name, written > 0) == (place.pack, True)
    with pytest.raises(CorruptFile, match="truncated"):
        packs.read(place._replace(length=10**6))
    with pytest.raises(FileNotFoundError):
        packs.read(Place("other.lac", 0, 5))
    writer.abandon()
    packs.remove("other.lac")
    assert list(packs.names()) == []


def test_no_such_file_system():
    with pytest.raises(LaconicError, match="nowhere://"):
        remote.ObjectPacks("nowhere://a/b")


@pytest.mark.parametrize("text", ["garbage", "[]"])
def test_configurations_that_are_none(tmp_path, text):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"store\.json"):
        Store.configured(tmp_path)
