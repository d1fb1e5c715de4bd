"""A store behind the read side of the Hugging Face Hub's protocol, so that its clients work as they are.

    GET  /api/models, /api/models/NAME[/revision/REVISION]   what there is
    GET  /api/models/NAME/tree/REVISION[/FOLDER]             files
    HEAD, GET  /NAME/resolve/REVISION/PATH                   a file, or bytes of it
    PUT  /api/models/NAME                                    adds what `laconic pack FOLDER` gives
    GET  /                                                   a page

Paths are looked up in manifests, never on the disk. Every object is compared with its digest before it is sent.
"""

import hmac
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from laconic import __version__
from laconic.errors import CorruptFile, LaconicError, UsageError
from laconic.store.archive import Archive
from laconic.store.index import Model
from laconic.store.manifest import StoredFile
from laconic.store.page import page
from laconic.store.reading import write_folder
from laconic.store.store import Store, StoredModel, checked_name

MAIN = "main"
OPENED = 64  # manifests that are kept
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Refused(Exception):
    """An answer that is an error, as the Hub gives it.

    Attributes:
        status: of HTTP.
        code: in the header `X-Error-Code`.
        message: for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def application(store: Store, *, token: str | None = None, threads: int = 1) -> FastAPI:
    """The application that serves `store`.

    Args:
        store: whose models are served.
        token: that every request has to bring; without one everybody may read, and nobody add.
        threads: that decode one answer.
    """
    app = FastAPI(title="laconic store", version=__version__, docs_url=None, redoc_url=None)
    shelf = _Shelf(store)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None and not _brings(request, token):
            return _error(
                Refused(401, "GatedRepo", "a token is needed, and another was given or none")
            )
        return await go_on(request)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return _error(error)

    @app.exception_handler(LaconicError)
    def failed(request: Request, error: LaconicError) -> Response:
        status = 400 if isinstance(error, UsageError) else 500
        return _error(Refused(status, "Damaged" if status == 500 else "BadRequest", str(error)))

    @app.get("/")
    def home() -> HTMLResponse:
        return HTMLResponse(page(store))

    @app.get("/api/models")
    def models(search: str = "", author: str = "", limit: int = 1000) -> list[dict[str, Any]]:
        newest = {model.name: model for model in store.index.models()}
        found = [
            _info(model)
            for name, model in newest.items()
            if search.lower() in name.lower() and (not author or name.startswith(f"{author}/"))
        ]
        return found[: max(0, limit)]

    @app.put("/api/models/{name:path}")
    async def add(name: str, request: Request) -> dict[str, Any]:
        if token is None:
            raise Refused(
                403, "Forbidden", "models are added with a token: start the server with one"
            )
        checked_name(name)
        with tempfile.TemporaryDirectory(prefix="laconic-") as held:
            path = Path(held) / "body.lac"
            with path.open("wb") as file:
                async for part in request.stream():
                    await run_in_threadpool(file.write, part)
            return await run_in_threadpool(_add, store, name, path, threads)

    @app.get("/api/models/{rest:path}")
    def about(rest: str, recursive: bool = False) -> Any:
        name, verb, revision, folder = _split(rest)
        stored = shelf.open(name, revision)
        if verb == "tree":
            return _tree(stored, folder, recursive)
        return {**_info(stored.model), "siblings": [_sibling(f) for f in stored.files.values()]}

    @app.api_route("/{rest:path}", methods=["GET", "HEAD"])
    def resolve(rest: str, request: Request) -> Response:
        name, verb, revision, path = _split(rest)
        if verb != "resolve":
            raise Refused(404, "RepoNotFound", f"there is nothing at /{rest}")
        stored = shelf.open(name, revision)
        if path not in stored.files:
            raise Refused(404, "EntryNotFound", f"{name} has no file {path!r}")
        return _file(stored, path, request, threads)

    return app


class _Shelf:
    """Opened models; the least used go."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._opened: OrderedDict[tuple[str, str], StoredModel] = OrderedDict()

    def open(self, name: str, revision: str) -> StoredModel:
        """A model at a revision: `main` for the newest, or all or some first digits of one."""
        models = self._store.index.models(name)
        if not models:
            raise Refused(404, "RepoNotFound", f"there is no model {name!r}")
        if revision != MAIN:
            digits = len(revision) >= 7
            models = [m for m in models if digits and m.revision.startswith(revision)]
        if not models:
            raise Refused(404, "RevisionNotFound", f"{name} has no revision {revision!r}")
        model = models[-1]
        key = (model.name, model.revision)
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
        stored = self._store.open(model)
        with self._lock:
            self._opened[key] = stored
            while len(self._opened) > OPENED:
                self._opened.popitem(last=False)
        return stored


def _split(rest: str) -> tuple[str, str, str, str]:
    """(name, verb, revision, path): `a/b/resolve/main/x/y`, `a/revision/main`, `a`."""
    parts = rest.split("/")
    for at in (1, 2):  # names have one part or two
        if len(parts) > at + 1 and parts[at] in ("resolve", "tree", "revision"):
            return "/".join(parts[:at]), parts[at], parts[at + 1], "/".join(parts[at + 2 :])
    return rest, "", MAIN, ""


def _file(stored: StoredModel, path: str, request: Request, threads: int) -> Response:
    file = stored.files[path]
    tag = f'"{file.digest.hex()}"'
    headers = {
        "ETag": tag, "X-Repo-Commit": stored.model.revision, "X-Linked-Etag": tag,
        "X-Linked-Size": str(file.size), "Accept-Ranges": "bytes",
    }  # fmt: skip
    kind = "application/octet-stream"
    if request.headers.get("if-none-match") in (tag, "*"):
        return Response(status_code=304, headers=headers)
    start, stop = 0, file.size
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range") in (None, tag):
        run = _range(wanted, file.size)
        if run is None:
            headers["Content-Range"] = f"bytes */{file.size}"
            return Response(status_code=416, headers=headers)
        start, stop = run
    whole = (start, stop) == (0, file.size)
    if not whole:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    status = 200 if whole else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)

    def body() -> Iterator[bytes]:
        for raw in stored.chunks(path, start, stop - start, threads=threads):
            yield raw.tobytes()

    return StreamingResponse(body(), status, headers, kind)


def _range(header: str, size: int) -> tuple[int, int] | None:
    """(first byte, byte behind the last) of a range; None if it is none, or one of no bytes."""
    match = RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    start, stop = int(first), min(size, int(last) + 1 if last else size)
    return (start, stop) if start < stop else None


def _tree(stored: StoredModel, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    inside = [file for path, file in stored.files.items() if path.startswith(prefix)]
    if prefix and not inside:
        raise Refused(404, "EntryNotFound", f"{stored.model.name} has no folder {folder!r}")
    found: dict[str, dict[str, Any]] = {}
    for file in inside:
        steps = file.path[len(prefix) :].split("/")
        for depth in range(1, len(steps) if recursive else min(2, len(steps))):
            path = prefix + "/".join(steps[:depth])
            found[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        if recursive or len(steps) == 1:
            found[file.path] = {
                "type": "file", "path": file.path, "oid": file.digest.hex()[:40], "size": file.size,
            }  # fmt: skip
    return list(found.values())


def _info(model: Model) -> dict[str, Any]:
    """As the Hub describes a model."""
    added = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {
        "_id": model.revision[:24], "id": model.name, "modelId": model.name,
        "author": model.name.rpartition("/")[0] or None, "sha": model.revision, "private": False,
        "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
        "lastModified": added, "createdAt": added, "usedStorage": model.size,
    }  # fmt: skip


def _sibling(file: StoredFile) -> dict[str, Any]:
    return {"rfilename": file.path, "size": file.size, "blobId": file.digest.hex()[:40]}


def _add(store: Store, name: str, path: Path, threads: int) -> dict[str, Any]:
    """Adds the files of an archive."""
    try:
        archive = Archive(path)
        folder = path.with_name("files")
        write_folder(archive, folder, threads=threads)
    except CorruptFile as error:
        raise UsageError(f"the body is no archive as laconic pack writes it: {error}") from error
    added = store.add(folder, name, threads=threads)
    return {**_info(added.model), "known": added.known, "written": added.stored}


def _brings(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), token.encode())


def _error(error: Refused) -> Response:
    headers = {"X-Error-Code": error.code, "X-Error-Message": _plain(error.message)}
    return JSONResponse({"error": error.message}, error.status, headers)


def _plain(message: str) -> str:
    """What a header can hold."""
    return re.sub(r"[^ -~]", "?", message)[:500]
