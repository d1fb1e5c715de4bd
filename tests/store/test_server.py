"""A store behind the Hub's protocol: its own clients, ranges, errors, and what must not be reached."""

import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laconic.store.packing import pack
from laconic.store.store import Store
from tests.store.files import contents_of, make_all
from tests.store.models import save, tuned, weights

uvicorn = pytest.importorskip("uvicorn")
server = pytest.importorskip("laconic.store.server")


class Served:
    """A running server of a store."""

    def __init__(self, store, token=None):
        app = server.application(store, token=token)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def ask(self, path, method="GET", body=None, **headers):
        """(status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("model") / "some-model")


@pytest.fixture(scope="module")
def store(tmp_path_factory, folder):
    store = Store(tmp_path_factory.mktemp("store"))
    store.add(folder, "me/some-model")
    store.add(folder / "model.safetensors", "alone")
    return store


@pytest.fixture(scope="module")
def served(store):
    running = Served(store)
    yield running
    running.stop()


def test_models(served, store):
    models = json.loads(served.ask("/api/models")[2])
    assert [model["id"] for model in models] == ["me/some-model", "alone"]
    assert json.loads(served.ask("/api/models?search=SOME")[2])[0]["id"] == "me/some-model"
    assert json.loads(served.ask("/api/models?author=you")[2]) == []
    assert len(json.loads(served.ask("/api/models?limit=1")[2])) == 1


@pytest.mark.parametrize("end", ["", "/revision/main", "/revision/{sha}", "/revision/{short}"])
def test_a_model(served, store, folder, end):
    sha = store.model("me/some-model").revision
    found = json.loads(
        served.ask("/api/models/me/some-model" + end.format(sha=sha, short=sha[:8]))[2]
    )
    assert found["sha"] == sha
    files = {file["rfilename"]: file["size"] for file in found["siblings"]}
    assert files == {path: len(data) for path, data in contents_of(folder).items()}


def test_trees(served, folder):
    tree = json.loads(served.ask("/api/models/me/some-model/tree/main?recursive=true")[2])
    files = {f["path"]: f["size"] for f in tree if f["type"] == "file"}
    assert files == {path: len(data) for path, data in contents_of(folder).items()}
    top = json.loads(served.ask("/api/models/me/some-model/tree/main")[2])
    assert {f["path"] for f in top if f["type"] == "directory"} == {"inside"}
    inside = json.loads(served.ask("/api/models/me/some-model/tree/main/inside")[2])
    assert {f["path"] for f in inside} == {p for p in files if p.startswith("inside/")}
    assert served.ask("/api/models/me/some-model/tree/main/nowhere")[0] == 404


def test_files(served, store, folder):
    sha = store.model("me/some-model").revision
    for path, data in contents_of(folder).items():
        for revision in ("main", sha):
            status, headers, body = served.ask(f"/me/some-model/resolve/{revision}/{path}")
            assert (status, body) == (200, data)
            assert headers["x-repo-commit"] == sha
            assert headers["content-length"] == str(len(data))
        status, head, body = served.ask(f"/me/some-model/resolve/main/{path}", "HEAD")
        assert (status, body, head["etag"]) == (200, b"", headers["etag"])
        again = served.ask(f"/me/some-model/resolve/main/{path}", If_None_Match=head["etag"])
        assert (again[0], again[2]) == (304, b"")


@given(start=st.integers(-3, 70_000), length=st.integers(0, 70_000), form=st.integers(0, 2))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges(served, folder, start, length, form):
    data = (folder / "model.safetensors").read_bytes()
    wanted = [f"{start}-{start + length}", f"{start}-", f"-{length}"][form]
    if form < 2 and start < 0:
        wanted = f"{-start}"  # no range at all
    status, headers, body = served.ask(
        "/alone/resolve/main/model.safetensors", Range=f"bytes={wanted}"
    )
    first = start if form < 2 else max(0, len(data) - length)
    last = min(len(data), start + length + 1) if form == 0 else len(data)
    if (form < 2 and start < 0) or first >= last or (form == 2 and length == 0):
        assert (status, headers["content-range"]) == (416, f"bytes */{len(data)}")
    elif (first, last) == (0, len(data)):
        assert (status, body) == (200, data)
    else:
        assert (status, body) == (206, data[first:last])
        assert headers["content-range"] == f"bytes {first}-{last - 1}/{len(data)}"


def test_ranges_of_an_older_file_are_not_mixed(served, folder):
    data = (folder / "model.safetensors").read_bytes()
    path = "/alone/resolve/main/model.safetensors"
    assert served.ask(path, Range="bytes=5-", If_Range='"other"')[2] == data
    tag = served.ask(path, "HEAD")[1]["etag"]
    assert served.ask(path, Range="bytes=5-", If_Range=tag)[2] == data[5:]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/nobody", "RepoNotFound"), ("/api/models/alone/revision/gone", "RevisionNotFound"),
        ("/api/models/alone/tree/gone", "RevisionNotFound"), ("/nobody/resolve/main/a", "RepoNotFound"),
        ("/alone/resolve/main/a", "EntryNotFound"), ("/alone/resolve/abc/a", "RevisionNotFound"),
        ("/some/where", "RepoNotFound"), ("/alone", "RepoNotFound"),
    ],
)  # fmt: skip
def test_what_is_not_there(served, path, code):
    status, headers, body = served.ask(path)
    assert (status, headers["x-error-code"]) == (404, code)
    assert json.loads(body)["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/alone/resolve/main/../../index.sqlite", "/alone/resolve/main//etc/passwd",
        "/alone/resolve/main/%2e%2e/%2e%2e/index.sqlite", "/alone/resolve/main/..%2f..%2findex.sqlite",
        "/../index.sqlite", "/%2e%2e/resolve/main/index.sqlite", "/alone/resolve/../index.sqlite",
        "/alone/resolve/main/model.safetensors%00", "/api/models/..%2f..%2fetc",
    ],
)  # fmt: skip
def test_no_path_leaves_the_store(served, path):
    status, _, body = served.ask(path)
    assert status == 404
    assert b"SQLite" not in body
    assert b"root:" not in body


@given(
    st.text(max_size=40),
    st.sampled_from(["", "/api/models/", "/alone/resolve/main/", "/api/models/alone/tree/"]),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_path(served, text, before):
    from urllib.parse import quote

    status, _, _ = served.ask(before + quote(text, safe="/?=&.") if before else "/" + quote(text))
    assert status in (200, 404, 400, 422, 307)


def run_client(address, home, code, token=None):
    """What a client in a process of its own prints."""
    environment = {
        **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_TOKEN": token} if token else {}),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_snapshot_download(served, folder, tmp_path):
    code = "from huggingface_hub import snapshot_download as f; print(f('me/some-model'))"
    status, where, error = run_client(served.address, tmp_path, code)
    assert status == 0, error
    assert contents_of_links(where) == contents_of(folder)


def contents_of_links(folder):
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def test_models_of_transformers(tiny_models, tmp_path):
    """By name, through an unchanged client: the same weights."""
    store = Store(tmp_path / "store")
    store.add(tiny_models["llama"], "me/llama")
    running = Served(store)
    code = (
        "from transformers import AutoModelForCausalLM as A; import sys\n"
        f"a, b = A.from_pretrained('me/llama'), A.from_pretrained({str(tiny_models['llama'])!r})\n"
        "b = b.state_dict(); print(all((b[n] == t).all() for n, t in a.state_dict().items()))"
    )
    try:
        status, out, error = run_client(running.address, tmp_path / "home", code)
    finally:
        running.stop()
    assert (status, out.splitlines()[-1]) == (0, "True"), error


def test_tokens(store, folder, tmp_path):
    running = Served(store, token="secret")
    try:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer "}):
            for path in ("/", "/api/models", "/alone/resolve/main/model.safetensors"):
                status, answer, body = running.ask(path, **headers)
                assert (status, answer["x-error-code"]) == (401, "GatedRepo")
                assert b"model" not in body
        assert running.ask("/api/models", Authorization="Bearer secret")[0] == 200
        code = "from huggingface_hub import hf_hub_download as f; print(f('alone', 'model.safetensors'))"
        status, where, error = run_client(running.address, tmp_path, code, "secret")
        assert status == 0, error
        with open(where, "rb") as file:
            assert file.read() == (folder / "model.safetensors").read_bytes()
    finally:
        running.stop()


def test_adding(tmp_path):
    store = Store(tmp_path / "store")
    base = save(tmp_path / "base", weights(0))
    store.add(base)
    after = save(tmp_path / "tuned", tuned(weights(0), 1e-4))
    body = pack(after)[0].read_bytes()
    running = Served(store)
    try:
        assert running.ask("/api/models/me/tuned", "PUT", body)[0] == 403
    finally:
        running.stop()
    running = Served(store, token="secret")
    try:
        assert running.ask("/api/models/me/tuned", "PUT", body)[0] == 401
        bearer = {"Authorization": "Bearer secret"}
        status, _, answer = running.ask("/api/models/me/tuned", "PUT", body, **bearer)
        assert status == 200
        assert json.loads(answer)["id"] == "me/tuned"
        assert store.model("me/tuned").base is not None
        for bad in (b"", b"garbage", body[:-5], body[: len(body) // 2]):
            status, _, answer = running.ask("/api/models/me/bad", "PUT", bad, **bearer)
            assert (status, b"no archive" in answer) == (400, True)
        assert running.ask("/api/models/a/b/c", "PUT", body, **bearer)[0] == 400
    finally:
        running.stop()
    assert [model.name for model in store.index.models()] == ["base", "me/tuned"]


def test_damage_is_never_sent(tmp_path):
    store = Store(tmp_path / "store")
    store.add(save(tmp_path / "base", weights(0)))
    known = max(store.index.objects(), key=lambda k: k.size)
    path = store.folder / "packs" / known.place.pack
    data = bytearray(path.read_bytes())
    data[known.place.start + known.place.length // 2] ^= 1
    path.write_bytes(data)
    running = Served(store)
    try:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            running.ask("/base/resolve/main/model.safetensors")
        assert running.ask("/base/resolve/main/config.json")[2] == b"{}"
    finally:
        running.stop()


def test_many_clients_while_others_add_and_collect(tmp_path):
    store = Store(tmp_path / "store")
    base = save(tmp_path / "base", weights(0))
    store.add(base)
    expected = contents_of(base)["model.safetensors"]
    running, stop = Served(store), threading.Event()

    def work():
        own = Store(tmp_path / "store")
        number = 0
        while not stop.is_set():
            number += 1
            folder = save(tmp_path / f"tuned{number}", tuned(weights(0), 1e-4, seed=number))
            own.add(folder, "tuned")
            own.collect(grace=0)
            if number % 2:
                own.remove("tuned")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with ThreadPoolExecutor(32) as clients:
            path = "/base/resolve/main/model.safetensors"
            answers = [*clients.map(lambda _: running.ask(path), range(96))]
    finally:
        stop.set()
        worker.join()
        running.stop()
    assert all((status, body) == (200, expected) for status, _, body in answers)
    assert not list(store.damaged())


def test_the_page(served):
    status, headers, body = served.ask("/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    text = body.decode()
    assert "me/some-model" in text
    assert "equal tensors once" in text
    assert io.StringIO(text).readline().startswith("<!doctype html>")
    assert "http://" not in text  # nothing from elsewhere
    assert "https://" not in text
