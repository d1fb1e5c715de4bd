"""A store: what goes in comes out, once for all that is the same; what nothing needs goes."""

import os

import numpy as np
import pytest
import torch

from laconic.errors import CorruptFile, UsageError
from laconic.store import adding as adding_module
from laconic.store.index import Vanished
from laconic.store.store import Store, checked_name
from tests.store.files import contents_of, make_all
from tests.store.models import save, tuned, weights


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def base(tmp_path):
    return save(tmp_path / "base", weights(0))


def files_of(store, name):
    model = store.open(name)
    return {path: b"".join(c.tobytes() for c in model.chunks(path)) for path in model.files}


def packs_in(store):
    return sorted(os.listdir(store.folder / "packs"))


@pytest.mark.parametrize("threads", [1, 3])
def test_all_kinds_of_files(store, tmp_path, threads):
    folder = make_all(tmp_path / "some")
    added = store.add(folder, threads=threads)
    assert (added.model.name, added.model.files) == ("some", len(contents_of(folder)))
    assert files_of(store, "some") == contents_of(folder)
    assert not list(store.damaged())


def test_the_same_model_again(store, base):
    first = store.add(base, "a/first")
    again = store.add(base, "a/first")
    assert (again.stored, again.model.revision) == (0, first.model.revision)
    assert len(store.index.models()) == 1
    other = store.add(base, "copy")
    assert (other.stored, other.known) == (0, other.model.size)
    assert len(packs_in(store)) == 1


def test_equal_tensors_are_there_once(store, base, tmp_path):
    store.add(base)
    renamed = {f"model.{name}": tensor for name, tensor in weights(0).items()}
    added = store.add(save(tmp_path / "renamed", renamed))
    assert added.known > 0.95 * sum(t.nbytes for t in renamed.values())
    torch.save(weights(0), tmp_path / "model.pt")
    assert store.add(tmp_path / "model.pt").stored < 3000


@pytest.mark.parametrize("change", [1e-4, 3e-4, 1e-3])
def test_fine_tunes_are_differences(store, base, tmp_path, change):
    alone = store.add(base).stored
    after = save(tmp_path / "tuned", tuned(weights(0), change))
    added = store.add(after)
    assert added.model.base == f"base@{store.model('base').revision}"
    assert added.stored < (0.9 if change > 5e-4 else 0.7) * alone
    assert files_of(store, "tuned") == contents_of(after)
    assert store.index.totals()["differences"] > 0


def test_differences_do_not_pile_up(store, base, tmp_path):
    store.add(base)
    tensors = weights(0)
    for number in range(4):
        tensors = tuned(tensors, 1e-4, seed=number)
        store.add(save(tmp_path / f"tuned{number}", tensors), max_depth=1)
        assert files_of(store, f"tuned{number}") == contents_of(tmp_path / f"tuned{number}")
    assert max(known.depth for known in store.index.objects()) == 1
    root = f"base@{store.model('base').revision}"
    assert {m.base for m in store.index.models()} == {None, root}


def test_chains(store, base, tmp_path):
    store.add(base)
    tensors = weights(0)
    for number in range(4):
        tensors = tuned(tensors, 1e-4, seed=number)
        store.add(save(tmp_path / f"tuned{number}", tensors), max_depth=3)
    assert max(known.depth for known in store.index.objects()) == 3
    assert files_of(store, "tuned3") == contents_of(tmp_path / "tuned3")


def test_bases_may_be_named_or_refused(store, base, tmp_path):
    store.add(base)
    other = save(tmp_path / "other", weights(1))
    assert store.add(other).model.base is None
    after = save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    assert store.add(after, "solo", base="").model.base is None
    store.remove("solo")
    store.collect(grace=0)
    assert store.add(after, "named", base="base").model.base is not None
    with pytest.raises(UsageError, match="no model 'nobody'"):
        store.add(after, "x", base="nobody")


def test_embeddings_that_grew(store, base, tmp_path):
    store.add(base)
    tensors = tuned(weights(0), 1e-4)
    tensors["embed"] = torch.cat([tensors["embed"], torch.randn(3, 48).bfloat16()])
    added = store.add(save(tmp_path / "grown", tensors))
    assert added.model.base is not None
    assert files_of(store, "grown") == contents_of(tmp_path / "grown")
    assert added.stored < 0.8 * store.model("base").size * 0.7


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"_name_or_path": "me/base"}'),
        ("config.json", '{"_name_or_path": "/home/me/models/base"}'),
        ("README.md", "---\nbase_model: me/base\n---\n# a model"),
        ("README.md", "---\nbase_model:\n- base\n---\n"),
        ("adapter_config.json", '{"base_model_name_or_path": "me/base"}'),
    ],
)
def test_bases_that_are_declared(store, base, tmp_path, name, text):
    """Of models with another head."""
    store.add(base, "me/base")
    other = save(tmp_path / "other", {**tuned(weights(0), 1e-4), "head": torch.randn(5, 48)})
    assert store.add(other, "unsaid").model.base is None
    store.remove("unsaid")
    store.collect(grace=0)
    (other / name).write_text(text)
    assert store.add(other).model.base.startswith("me/base@")
    assert files_of(store, "other") == contents_of(other)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"), ("config.json", "garbage"), ("config.json", '{"_name_or_path": 3}'),
        ("README.md", "---\n: {\n---"), ("README.md", "---"), ("README.md", "---\n- a\n---"),
        ("config.json", '{"_name_or_path": "nobody/knows"}'),
    ],
)  # fmt: skip
def test_declarations_that_say_nothing(store, base, tmp_path, name, text):
    store.add(base)
    other = save(tmp_path / "other", {**weights(1), "head": torch.randn(5, 48)})
    (other / name).write_text(text)
    assert store.add(other).model.base is None


def test_unrelated_models_are_never_paired(store, tmp_path):
    for seed in range(4):
        added = store.add(save(tmp_path / f"m{seed}", weights(seed)))
        assert added.model.base is None
    assert store.index.totals()["differences"] == 0


def test_revisions(store, base):
    first = store.add(base).model
    save(base, weights(5), config='{"changed": true}')
    second = store.add(base).model
    assert first.revision != second.revision
    assert store.model("base") == second
    assert store.model(f"base@{first.revision[:8]}") == first
    assert files_of(store, f"base@{first.revision[:8]}")["config.json"] == b"{}"
    assert store.remove("base") == second
    assert store.model("base") == first


def test_a_base_stays_while_a_model_needs_it(store, base, tmp_path):
    store.add(base)
    after = save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    store.add(after)
    store.remove("base")
    store.collect(grace=0)
    assert files_of(store, "tuned") == contents_of(after)
    store.remove("tuned")
    assert store.collect(grace=0).packs == 2
    assert store.index.totals()["objects"] == 0
    assert packs_in(store) == []


def test_nothing_goes_before_its_time(store, base):
    store.add(base)
    store.remove("base")
    assert store.collect().objects == 0
    assert store.add(base).stored == 0
    assert store.collect(grace=0).objects == 0
    assert files_of(store, "base") == contents_of(base)


def test_what_is_left_of_a_pack_moves(store, tmp_path):
    shared, own = weights(0), weights(1)
    both = {"a": shared["embed"], **{f"own.{n}": t for n, t in own.items()}}
    store.add(save(tmp_path / "both", both))
    rest = save(tmp_path / "rest", {"a": shared["embed"]})
    store.add(rest)
    before = store.index.totals()["packs"]
    store.remove("both")
    done = store.collect(grace=0)
    after = store.index.totals()["packs"]
    assert done.freed == before - after > 0
    assert files_of(store, "rest") == contents_of(rest)
    assert store.collect(grace=0).packs == 0


def test_what_is_needed_may_be_collected_meanwhile(store, base, monkeypatch):
    """Between the look at what is known and the commit; then the model is added anew."""
    store.add(base)
    store.remove("base")
    add, calls = store.index.add, []

    def late(*args):
        if not calls:
            store.collect(grace=0)
        calls.append(args)
        return add(*args)

    monkeypatch.setattr(store.index, "add", late)
    added = store.add(base)
    assert len(calls) == 2
    assert added.stored > 0
    assert files_of(store, "base") == contents_of(base)


def test_no_end_of_collecting(store, base, monkeypatch):
    def never(*args):
        raise Vanished("some")

    monkeypatch.setattr(store.index, "add", never)
    with pytest.raises(UsageError, match="collected 5 times meanwhile"):
        store.add(base)
    assert packs_in(store) == []


def test_large_models_take_several_packs(store, base, monkeypatch):
    monkeypatch.setattr(adding_module, "FULL", 5000)
    store.add(base)
    assert len(packs_in(store)) > 2
    assert files_of(store, "base") == contents_of(base)


def test_two_may_add_the_same_at_once(store, base, monkeypatch):
    """The second finds it there when it is done."""
    add = store.index.add

    def after_another(*args):
        monkeypatch.setattr(store.index, "add", add)
        Store(store.folder).add(base)
        return add(*args)

    monkeypatch.setattr(store.index, "add", after_another)
    store.add(base)
    assert len(store.index.models()) == len(packs_in(store)) == 1
    assert store.index.open_packs() == []
    assert files_of(store, "base") == contents_of(base)


def test_a_failed_add_leaves_nothing(store, base):
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CorruptFile, match="truncated"):
        store.add(base)
    assert packs_in(store) == []
    assert store.index.models() == store.index.open_packs() == []


def test_leftovers_of_the_dead_are_removed(store, base, monkeypatch):
    store.add(base)
    folder = store.folder / "packs"
    (folder / ".old.lac").write_bytes(b"some")
    (folder / "old.lac").write_bytes(b"some")
    os.utime(folder / ".old.lac", (0, 0))
    os.utime(folder / "old.lac", (0, 0))
    (folder / ".new.lac").write_bytes(b"some")  # perhaps of one who has just begun
    writer = store.packs.writer()  # of a process that was killed
    store.index.begin_pack(writer.name, f"{2**22 + 1}@{adding_module.socket.gethostname()}")
    os.utime(folder / f".{writer.name}", (0, 0))
    alive = store.packs.writer()
    store.index.begin_pack(alive.name, adding_module.owner())
    os.utime(folder / f".{alive.name}", (0, 0))
    far = store.packs.writer()
    store.index.begin_pack(far.name, "1@another-machine")
    os.utime(folder / f".{far.name}", (0, 0))
    store.collect(grace=0)
    left = {name.removeprefix(".") for name in packs_in(store)}
    assert {"new.lac", alive.name, far.name} <= left
    assert "old.lac" not in left
    assert writer.name not in left
    assert files_of(store, "base") == contents_of(base)


def test_damage_is_found_and_never_served(store, base, tmp_path):
    store.add(base)
    store.add(save(tmp_path / "tuned", tuned(weights(0), 1e-4)))
    store.add(save(tmp_path / "other", weights(1)))
    known = max(store.index.objects(), key=lambda k: k.size if k.base is None else 0)
    path = store.folder / "packs" / known.place.pack
    whole = path.read_bytes()
    for offset in range(0, known.place.length, max(1, known.place.length // 40)):
        data = bytearray(whole)
        data[known.place.start + offset] ^= 4
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match=known.digest.hex()):
            store.load(known.digest, known.size)
    bad = {one.digest for one, _ in store.damaged()}
    assert known.digest in bad
    names = [model.name for model in store.needing(bad)]
    healthy = {"base", "tuned", "other"} - set(names)
    assert names
    for name in healthy:
        assert files_of(store, name) == contents_of(tmp_path / name)
    path.unlink()
    assert any("is not there" in why for _, why in store.damaged())
    path.write_bytes(whole[: known.place.start])
    with pytest.raises(CorruptFile, match="truncated"):
        store.load(known.digest, known.size)


def test_objects_of_another_size(store, base):
    store.add(base)
    known = store.index.objects()[0]
    with pytest.raises(CorruptFile, match="are expected"):
        store.load(known.digest, known.size + 1)
    with pytest.raises(CorruptFile, match="does not have it"):
        store.load(bytes(32), 5)


def test_reading_rows(store, base):
    store.add(base)
    raw, dtype, shape = store.open("base").tensor("embed", rows=slice(10, 20))
    assert (dtype, shape) == ("BF16", (10, 48))
    expected = weights(0)["embed"][10:20].view(torch.uint8).numpy()
    assert np.array_equal(raw.reshape(10, 96), expected)


@pytest.mark.parametrize("name", ["a", "a/b", "A-1_x.y/b", "9"])
def test_names(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a/b/c", "../a", ".a", "-a", "a b", "a@b", "a\0", "x" * 97]
)
def test_other_names(name):
    with pytest.raises(UsageError, match="cannot be a model's name"):
        checked_name(name)


def test_a_file_that_is_no_store(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(CorruptFile, match="no SQLite database"):
        Store(tmp_path)


def test_packs_say_themselves_what_they_hold(store, base):
    """An index that is lost could be made anew."""
    from laconic.coding.framing import IndexedReader

    store.add(base)
    found = {
        bytes.fromhex(digest)
        for pack in packs_in(store)
        for digest in IndexedReader(store.folder / "packs" / pack).names()
    }
    assert found == {known.digest for known in store.index.objects()}
