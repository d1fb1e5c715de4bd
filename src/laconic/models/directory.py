"""`DirectorySink`: streams a compressed model to a directory of safetensors files.

The directory appears under its name only when it is complete. Until then there is a hidden one beside
it, with a piece for each finished block. A run that was killed leaves it, and the same run goes on
from its last piece; after any other failure it is removed.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from laconic.errors import CorruptFile, LaconicError
from laconic.files import expect_free, put_in_place, save_json
from laconic.models.safetensors import Entry, read_header
from laconic.models.shards import write_file
from laconic.models.sink import Sink
from laconic.tensors.stored import Record, encode

SHARD_BYTES = 5 << 30
PIECE_BYTES = 128 << 20  # in memory at most, one tensor more
KEEP_AFTER = 60.0  # seconds of work from which an interrupt leaves finished blocks to go on from
PROGRESS, LOCK, STATES = "progress.json", "lock", "states"


class DirectorySink(Sink):
    """Streams to a directory of safetensors shards, renamed into place when complete.

    Args:
        out: the directory to make.
        save_config: writes everything but the weights into a folder, given the compressed modules.
        overwrite: whether an existing `out` is replaced; only once the new one is complete.
        shard_bytes: size from which a new shard is begun.
        job: names everything that the result depends on; a killed run with the same name is resumed.

    Raises:
        OutputExists: `out` is there and `overwrite` is false.
        LaconicError: another process is at the same job, or a file cannot be written.
    """

    def __init__(
        self, out: Path, save_config: Callable[[Path, list[str]], None],
        *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES, job: str | None = None,
    ) -> None:  # fmt: skip
        expect_free(out, overwrite)
        self.out, self._resumable = out, job is not None
        self.work = out.parent / f".{out.name}.partial-{job or os.getpid()}"
        self._save_config, self._shard_bytes = save_config, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pieces: list[str] = []
        self._modules: list[str] = []
        self._saved: dict[str, Any] = {}
        self._stored: int | None = None
        self._lock: IO[str] | None = None
        self._started = time.monotonic()

    def put_module(self, path: str, slots: Mapping[str, Record]) -> dict[str, int]:
        self._modules.append(path)
        sizes = {}
        for name, record in slots.items():
            blob = encode(record)
            sizes[name] = len(blob)
            array = np.frombuffer(blob, np.uint8).copy()
            self.put_tensor(f"{path}.{name}", torch.from_numpy(array))
        return sizes

    def keep_module(self, path: str, slots: Mapping[str, Record]) -> None:
        self.put_module(path, slots)

    def put_tensor(self, name: str, tensor: Tensor) -> None:
        self._pending[name] = tensor.cpu()
        if sum(t.nbytes for t in self._pending.values()) >= PIECE_BYTES:
            self._flush()

    def checkpoint(self, progress: dict[str, Any]) -> None:
        if not self._resumable:
            return
        self._flush()
        state = {"pieces": self._pieces, "modules": self._modules, "progress": progress}
        save_json(self.work / PROGRESS, state, indent=None)
        self._saved = progress

    def resumed(self) -> dict[str, Any]:
        return self._saved

    def restart(self) -> None:
        self._pieces, self._modules, self._saved = [], [], {}

    def states_folder(self) -> Path | None:
        return self.work / STATES

    def __enter__(self) -> Self:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(exist_ok=self._resumable)
            self._take()
            try:
                self._save_config(self.work, [])  # what cannot be saved is known before the work
                self._pick_up()
            except BaseException:
                self._remove()
                raise
        except OSError as error:
            raise _explained(error, self.out) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        keep = False
        try:
            if kind is None:
                self.finish()
                self._save_config(self.work, self._modules)
                self._publish()
            elif issubclass(kind, KeyboardInterrupt) and self._saved:
                keep = time.monotonic() - self._started > KEEP_AFTER
                if keep and error is not None:
                    error.add_note(
                        f"finished blocks are kept in {self.work}: run the same command again to go "
                        "on, or delete it"
                    )
        except OSError as problem:
            raise _explained(problem, self.out) from problem
        finally:
            if not keep:
                self._remove()
            if self._lock is not None:
                self._lock.close()
        if isinstance(error, OSError):
            raise _explained(error, self.out) from error

    def finish(self) -> int:
        """Completes the weight files and returns their bytes; leaving the block publishes them."""
        if self._stored is not None:
            return self._stored
        self._flush()
        shards = self._plan_shards()
        weight_map: dict[str, str] = {}
        for number, entries in enumerate(shards, start=1):
            path = self._shard(number, len(shards))
            if len(self._pieces) == len(shards) == 1:
                (self.work / self._pieces[0]).rename(path)
            else:
                write_file(path, entries)
            weight_map |= dict.fromkeys(entries, path.name)
            later = {entry.path for shard in shards[number:] for entry in shard.values()}
            for used in {entry.path for entry in entries.values()} - later:
                used.unlink(missing_ok=True)
        if len(shards) > 1:
            size = sum(p.stat().st_size for p in self.work.glob("model-*.safetensors"))
            index: dict[str, Any] = {"metadata": {"total_size": size}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.work / "model.safetensors.index.json").write_text(text)
        self._stored = sum(path.stat().st_size for path in self.work.glob("model*.safetensors"))
        return self._stored

    def _plan_shards(self) -> list[dict[str, Entry]]:
        """All tensors in the order in which they came, a new shard begun once one is full."""
        shards: list[dict[str, Entry]] = [{}]
        size = 0
        for piece in self._pieces:
            entries = read_header(self.work / piece)
            for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
                if size >= self._shard_bytes:
                    shards.append({})
                    size = 0
                shards[-1][name] = entry
                size += entry.size
        return shards

    def _flush(self) -> None:
        """Writes what is pending as a piece."""
        if not self._pending:
            return
        name = f"piece-{len(self._pieces) + 1:05d}.tmp"
        write_file(self.work / name, self._pending)
        self._pieces.append(name)
        self._pending = {}

    def _shard(self, number: int, total: int) -> Path:
        if total == 1:
            return self.work / "model.safetensors"
        return self.work / f"model-{number:05d}-of-{total:05d}.safetensors"

    def _take(self) -> None:
        """Locks the working directory; a lock dies with its process."""
        if not self._resumable:
            return
        self._lock = (self.work / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise LaconicError(f"another process is writing {self.out} already") from None

    def _pick_up(self) -> None:
        """Takes over what an interrupted run finished; anything else that it left is removed."""
        file = self.work / PROGRESS
        if not file.is_file():
            return
        try:
            state = json.loads(file.read_text())
            for piece in state["pieces"]:
                read_header(self.work / piece)
        except (ValueError, KeyError, TypeError, OSError, CorruptFile):
            return  # damaged: from the start
        self._pieces, self._modules = list(state["pieces"]), list(state["modules"])
        self._saved = state["progress"]

    def _remove(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def _publish(self) -> None:
        """Renames the finished directory into place; an old one goes only afterwards."""
        for name in (PROGRESS, LOCK):
            (self.work / name).unlink(missing_ok=True)
        shutil.rmtree(self.work / STATES, ignore_errors=True)
        for leftover in self.work.glob("piece-*.tmp"):
            leftover.unlink()
        put_in_place(self.work, self.out)


def _explained(error: OSError, out: Path) -> LaconicError:
    if error.errno == errno.ENOSPC:
        return LaconicError(f"cannot write {out}: the disk is full; nothing was left behind")
    return LaconicError(f"cannot write {out}: {error.strerror or error}; nothing was left behind")
