"""Whatever happens to a process, the store is as before or as after, and others never notice."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from laconic.errors import UsageError
from laconic.store.database import SQLite
from laconic.store.packs import FolderPackWriter
from laconic.store.store import Store
from tests.store.files import contents_of
from tests.store.models import save, tuned, weights

FORK = multiprocessing.get_context("fork")
DIED = 9


def run(work, *arguments):
    """Exit code of `work` in a process of its own."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def dying(step, folder, work):
    """`work(store)` in a process that ends at its `step`-th write, as if it were killed."""
    left = [step]

    def counted(method):
        def call(*args):
            if left[0] == 0:
                os._exit(DIED)
            left[0] -= 1
            return method(*args)

        return call

    store = Store(folder)
    for owner, name in (
        (SQLite, "run"), (SQLite, "run_many"), (FolderPackWriter, "add"), (os, "fsync"),
        (Path, "rename"), (Path, "unlink"),
    ):  # fmt: skip
        setattr(owner, name, counted(getattr(owner, name)))
    work(store)
    os._exit(0)


def files_of(store, name):
    model = store.open(name)
    return {path: b"".join(c.tobytes() for c in model.chunks(path)) for path in model.files}


def healthy(folder, expected):
    """The models are there, whole; nothing else is, and what was left behind can be collected."""
    store = Store(folder)
    assert {model.name for model in store.index.models()} == expected.keys()
    assert not list(store.damaged())
    store.collect(grace=0)
    for name, files in expected.items():
        assert files_of(store, name) == files


@pytest.fixture
def models(tmp_path):
    """Folders of a base and of what was made of it."""
    return {
        "base": save(tmp_path / "base", weights(0)),
        "tuned": save(tmp_path / "tuned", tuned(weights(0), 1e-4)),
        "other": save(tmp_path / "other", weights(1)),
    }


def every_step(folder, work, before, after):
    """Kills `work` at each of its writes, until it lives to the end."""
    for step in range(0, 500, 2):
        code = run(dying, step, folder, work)
        store = Store(folder)
        found = {model.name for model in store.index.models()}
        assert found in (before.keys(), after.keys())
        healthy(folder, after if found == after.keys() else before)
        if code == 0:
            assert found == after.keys()
            return step
        assert code == DIED
    raise AssertionError("it never ends")


def test_adding(tmp_path, models):
    expected = {name: contents_of(models[name]) for name in models}
    store = Store(tmp_path / "store")
    store.add(models["base"])
    before = {"base": expected["base"]}
    steps = every_step(
        tmp_path / "store",
        lambda s: s.add(models["tuned"]),
        before,
        before | {"tuned": expected["tuned"]},
    )
    assert steps > 20


def test_removing_and_collecting(tmp_path, models):
    expected = {name: contents_of(models[name]) for name in models}
    store = Store(tmp_path / "store")
    for name in models:
        store.add(models[name])

    def work(store):
        if any(model.name == "base" for model in store.index.models()):
            store.remove("base")
        store.collect(grace=0)

    every_step(tmp_path / "store", work, expected, {n: expected[n] for n in ("tuned", "other")})
    left = Store(tmp_path / "store")
    left.remove("tuned")
    left.remove("other")
    left.collect(grace=0)
    assert left.index.totals()["objects"] == 0


def add_all(folder, models, seed):
    store = Store(folder)
    for number in range(3):
        for name in sorted(models, key=lambda n: hash((n, seed, number))):
            store.add(models[name], f"{name}-{seed}-{number}")


def remove_all(folder, seconds):
    store = Store(folder)
    end = time.time() + seconds
    while time.time() < end:
        for model in store.index.models():
            if model.name.endswith("-1"):
                try:
                    store.remove(f"{model.name}@{model.revision}")
                except UsageError:  # someone else was faster
                    continue
        store.collect(grace=0)


def read_all(folder, expected, seconds):
    store = Store(folder)
    end, read = time.time() + seconds, 0
    while time.time() < end or not read:
        for model in store.index.models():
            if not model.name.endswith("-1"):
                assert files_of(store, model.name) == expected[model.name.split("-")[0]]
                read += 1
    os._exit(0 if read else 1)


def test_adding_reading_removing_and_collecting_at_once(tmp_path, models):
    folder = tmp_path / "store"
    expected = {name: contents_of(models[name]) for name in models}
    Store(folder).add(models["base"], "base-x-0")
    work = [
        FORK.Process(target=add_all, args=(folder, models, 1)),
        FORK.Process(target=add_all, args=(folder, models, 2)),
        FORK.Process(target=remove_all, args=(folder, 4)),
        FORK.Process(target=remove_all, args=(folder, 4)),
        FORK.Process(target=read_all, args=(folder, expected, 4)),
        FORK.Process(target=read_all, args=(folder, expected, 4)),
    ]
    for process in work:
        process.start()
    for process in work:
        process.join()
    assert [process.exitcode for process in work] == [0] * 6
    store = Store(folder)
    left = {model.name for model in store.index.models()}
    assert {f"{name}-{seed}-{n}" for name in models for seed in (1, 2) for n in (0, 2)} <= left
    healthy(folder, {name: expected[name.split("-")[0]] for name in left})


def test_killed_at_any_time(tmp_path, models):
    """By the system, wherever it is."""
    folder = tmp_path / "store"
    Store(folder).add(models["base"], "base-x-0")
    for wait in (0.01, 0.03, 0.06, 0.1, 0.2):
        process = FORK.Process(target=add_all, args=(folder, models, 1))
        process.start()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = Store(folder)
        assert not list(store.damaged())
        for model in store.index.models():
            assert files_of(store, model.name) == contents_of(models[model.name.split("-")[0]])
    store.collect(grace=0)
    assert not [name for name in os.listdir(folder / "packs") if name.startswith(".")]
