"""Stored files, put together again from their objects: all of one, any bytes of it, or a tensor."""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from blake3 import blake3

from laconic.errors import CorruptFile, UsageError
from laconic.files import expect_free, whole_folder
from laconic.progress import SILENT, Progress
from laconic.store.manifest import Run, StoredFile
from laconic.store.parts import Part
from laconic.store.pipeline import in_order

CACHED = 4  # objects that a reader keeps as they were


class StoredFiles(ABC):
    """Files whose objects are somewhere; threads may share it.

    Args:
        files: of a manifest.

    Attributes:
        files: by path.
    """

    def __init__(self, files: list[StoredFile]) -> None:
        self.files: Mapping[str, StoredFile] = {file.path: file for file in files}
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @abstractmethod
    def load(self, digest: bytes, size: int) -> np.ndarray:
        """The (size,) bytes of an object.

        Raises:
            CorruptFile: it is damaged, as far as that can be seen without its digest.
        """

    def chunks(
        self, path: str, start: int = 0, size: int | None = None, *, threads: int = 1
    ) -> Iterator[np.ndarray]:
        """The bytes of a file, from front to back; or `size` of them from `start` on.

        Raises:
            UsageError: no such file or bytes.
            CorruptFile: an object, or the whole, is not what was stored; some may have been given before.
        """
        file = self._file(path)
        stop = self._stop(file, start, size)
        wanted = (run for run in file.runs() if run.start < stop and start < run.start + run.size)
        digest = blake3()
        for run, raw in in_order(self._run, wanted, threads):
            digest.update(raw.data)
            yield raw[max(0, start - run.start) : stop - run.start]
        if stop - start == file.size and digest.digest() != file.digest:
            raise CorruptFile(f"{path}: its bytes are not those that were stored")

    def read(self, path: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """`size` bytes of a file from `start` on, (size,) uint8; only objects that hold them are read.

        Raises:
            UsageError: no such file or bytes.
            CorruptFile: an object is damaged.
        """
        file = self._file(path)
        return self._range(file, start, self._stop(file, start, size) - start)

    def tensor(
        self, name: str, *, path: str | None = None, rows: slice = slice(None)
    ) -> tuple[np.ndarray, str, tuple[int, ...]]:
        """(bytes, dtype, shape) of a tensor, or of some of its rows; `from_raw` makes a tensor of them.

        Args:
            name: of the tensor.
            path: of the file, where several have one of that name.
            rows: of the first dimension, without steps.

        Raises:
            UsageError: no such tensor, or rows that are not in one run.
            CorruptFile: an object is damaged.
        """
        file, part = self._found(name, path)
        if not part.shape:
            return self._range(file, part.start, part.size), part.dtype, part.shape
        first, last, step = rows.indices(part.shape[0])
        if step != 1:
            raise UsageError(f"rows of {name} in one run are expected, found steps of {step}")
        count, row = max(0, last - first), part.size // max(1, part.shape[0])
        found = self._range(file, part.start + first * row, count * row)
        return found, part.dtype, (count, *part.shape[1:])

    def _stop(self, file: StoredFile, start: int, size: int | None) -> int:
        stop = file.size if size is None else start + size
        if not 0 <= start <= stop <= file.size:
            raise UsageError(f"{file.path}: bytes {start} to {stop} of {file.size}")
        return stop

    def _found(self, name: str, path: str | None) -> tuple[StoredFile, Part]:
        files = self.files.values() if path is None else [self._file(path)]
        found = [(file, part) for file in files for part, _ in file.parts if part.name == name]
        if len(found) != 1:
            few = "none" if not found else f"{len(found)}: say of which file"
            raise UsageError(f"one tensor of the name {name!r} is expected, found {few}")
        return found[0]

    def _file(self, path: str) -> StoredFile:
        if path not in self.files:
            raise UsageError(f"there is no file {path!r}; there are: {', '.join(self.files)}")
        return self.files[path]

    def _range(self, file: StoredFile, start: int, size: int) -> np.ndarray:
        try:
            out = np.empty(size, np.uint8)
        except MemoryError as error:
            raise CorruptFile(f"no memory for the {size} bytes that are claimed") from error
        for run in file.runs():
            first, last = max(start, run.start), min(start + size, run.start + run.size)
            if first < last:
                raw, shift = self._cached(run), run.first - run.start
                out[first - start : last - start] = raw[first + shift : last + shift]
        return out

    def _run(self, run: Run) -> tuple[Run, np.ndarray]:
        if run.size == run.whole:
            return run, self.load(run.digest, run.whole)
        return run, self._cached(run)[run.first : run.first + run.size]

    def _cached(self, run: Run) -> np.ndarray:
        """The whole object of a run."""
        with self._lock:
            if run.digest in self._cache:
                self._cache.move_to_end(run.digest)
                return self._cache[run.digest]
        raw = self.load(run.digest, run.whole)
        if blake3(raw.data).digest() != run.digest:
            raise CorruptFile(f"object {run.digest.hex()}: its bytes are not those of its name")
        with self._lock:
            self._cache[run.digest] = raw
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return raw


def write_folder(
    stored: StoredFiles, out: Path, *, threads: int = 1, overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:  # fmt: skip
    """Writes all files into a folder, which appears when they are complete.

    Raises:
        CorruptFile: a file is damaged; nothing is left at `out`.
        OutputExists: `out` is there already.
    """
    expect_free(out, overwrite)
    with whole_folder(out) as folder:
        files = [*stored.files.items()]
        for name, file in progress.track(files, "writing", total=len(files)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                for raw in stored.chunks(name, threads=threads):
                    stream.write(raw.data)
            if file.executable:
                path.chmod(path.stat().st_mode | 0o111)
