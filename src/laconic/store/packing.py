"""Packs files and folders into archives, and unpacks and verifies them."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from laconic.errors import OutputExists, UsageError
from laconic.files import expect_free, whole_file
from laconic.progress import SILENT, Progress
from laconic.store.archive import SUFFIX, Archive, ArchiveWriter
from laconic.store.inputs import inputs_of, opened, piped
from laconic.store.reading import write_folder

PIPE = Path("-")
PIPED = "data"  # what a file from a pipe is called


@dataclass(frozen=True)
class Packed:
    """What packing or unpacking did.

    Attributes:
        files: how many.
        raw: their bytes.
        packed: bytes of the archive.
        seconds: that it took.
    """

    files: int
    raw: int
    packed: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def pack(
    source: Path | str, out: Path | str | None = None, *, engine: str = "huffman", threads: int = 1,
    overwrite: bool = False, progress: Progress = SILENT,
) -> tuple[Path, Packed]:  # fmt: skip
    """Makes an archive of a file or a folder, without loss; the source is not changed.

    Memory: about `threads` times 80 MB, however large the files.

    Args:
        source: file or folder; `-` for standard input.
        out: the archive; `-` for standard output; by default `source` with `.lac` behind it.
        engine: `huffman` (fast) or `rans` (small).
        threads: that encode; the result does not depend on it.
        overwrite: replace `out`, once the new one is complete.
        progress: follows the files.

    Returns:
        Where the archive is, and what was done.

    Raises:
        UsageError: no such source, an unknown engine.
        OutputExists: `out` is there already.
        CorruptFile: a `.safetensors` file is damaged.
    """
    source = Path(source)
    if out is None:
        out = PIPE if source == PIPE else source.with_name(source.resolve().name + SUFFIX)
    out = Path(out)
    inputs = [] if source == PIPE else inputs_of(source)
    started = time.perf_counter()
    with _written(out, overwrite) as stream:
        writer = ArchiveWriter(stream, engine=engine, threads=threads)
        if source == PIPE:
            writer.add(piped(sys.stdin.buffer, PIPED))
        for name, path in progress.track(inputs, "packing", total=len(inputs)):
            with opened(name, path) as file:
                writer.add(file)
        size = writer.close(folder=source.is_dir())
    raw = sum(file.size for file in writer.files)
    return out, Packed(len(writer.files), raw, size, time.perf_counter() - started)


def unpack(
    source: Path | str, out: Path | str | None = None, *, threads: int = 1, overwrite: bool = False,
    progress: Progress = SILENT,
) -> tuple[Path, Packed]:  # fmt: skip
    """Puts the files of an archive where they were, byte for byte.

    Args:
        source: the archive; `-` for standard input, which is kept in a temporary file meanwhile.
        out: the file or folder; `-` writes the only file to standard output; by default `source` without
            `.lac`.
        threads: that decode.
        overwrite: replace `out`, once the new one is complete.
        progress: follows the files.

    Returns:
        Where the files are, and what was done.

    Raises:
        CorruptFile: the archive is damaged; nothing is left at `out`.
        OutputExists: `out` is there already.
    """
    source = Path(source)
    started = time.perf_counter()
    with _sought(source) as path:
        archive = Archive(path)
        if out is None:
            if source.suffix != SUFFIX:
                raise UsageError(f"{source} does not end with {SUFFIX}: say where to (--out)")
            out = source.with_suffix("")
        out = Path(out)
        if archive.is_folder:
            if out == PIPE:
                raise UsageError("a folder cannot go to standard output: say where to (--out)")
            write_folder(archive, out, threads=threads, overwrite=overwrite, progress=progress)
        else:
            (name,) = archive.files
            with _written(out, overwrite) as stream:
                for chunk in archive.chunks(name, threads=threads):
                    stream.write(chunk.data)
            if archive.files[name].executable and out != PIPE:
                out.chmod(out.stat().st_mode | 0o111)
        raw = sum(file.size for file in archive.files.values())
        size = path.stat().st_size
    return out, Packed(len(archive.files), raw, size, time.perf_counter() - started)


def verify(source: Path | str, *, threads: int = 1, progress: Progress = SILENT) -> Packed:
    """Decodes an archive and compares every file with its digest.

    Raises:
        CorruptFile: which file is damaged.
    """
    started = time.perf_counter()
    archive = Archive(Path(source))
    for name in progress.track(archive.files, "verifying", total=len(archive.files)):
        for _ in archive.chunks(name, threads=threads):
            pass
    raw, size = sum(file.size for file in archive.files.values()), Path(source).stat().st_size
    return Packed(len(archive.files), raw, size, time.perf_counter() - started)


@contextmanager
def _written(out: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A stream to a file that appears when it is complete, or to standard output."""
    if out == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if out.is_dir():
        raise OutputExists(f"{out} is a folder: say which file to write (--out)")
    expect_free(out, overwrite)
    with whole_file(out) as temporary, temporary.open("wb") as stream:
        yield stream


@contextmanager
def _sought(source: Path) -> Iterator[Path]:
    """The archive as a file that can be read anywhere."""
    if source != PIPE:
        if not source.is_file():
            raise UsageError(f"{source}: no such file")
        yield source
        return
    with tempfile.NamedTemporaryFile(suffix=SUFFIX) as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)
