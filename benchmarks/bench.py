"""`Bench`: what a proof is given, and where its checks go."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
RESNET = "laconic.zoo.resnet:resnet20@{}"  # how a plain module is named; see laconic.models.memory

#: The task each architecture of a zoo is measured on, by its model type in config.json.
EVALUATION_DATA = {"bert": "sst2/dev.tsv", "vit": "vision/cifar10-test.tar"}
LANGUAGE_DATA = "text/valid.txt"
IMAGE_DATA = "vision/cifar10-test.tar"


@dataclass
class Check:
    """One claim and whether it held."""

    claim: str
    held: bool
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """Measurements to be read beside the checks."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Result:
    """What a proof left: its checks, tables and notes."""

    name: str
    slice: str
    checks: list[Check] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        return sum(not check.held for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """The hands of a proof.

    Args:
        name: `area/proof`.
        zoo: folder of trained models.
        data: folder of real inputs.
        slice: `quick` or `full`.
        fresh: measure again what is cached.
        say: prints a line.
        only: names of models, if not all.
    """

    def __init__(
        self, name: str, zoo: Path, data: Path, slice: Literal["quick", "full"], fresh: bool,
        say: Callable[[str], None], only: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.zoo, self.data, self.slice, self.fresh, self.only = zoo, data, slice, fresh, only
        self.result = Result(name, slice)
        self._say = say

    def check(self, claim: str, held: bool, **numbers: Any) -> None:
        """Records a claim with the numbers that decided it."""
        self.result.checks.append(Check(claim, bool(held), numbers))
        values = "  ".join(f"{key}={_short(value)}" for key, value in numbers.items())
        self._say(f"{'ok  ' if held else 'FAIL'}  {claim}   {values}")

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Records measurements."""
        self.result.tables.append(Table(title, columns, rows))

    def note(self, text: str) -> None:
        """Records a sentence that a reader of the numbers needs."""
        self.result.notes.append(text)
        self._say(f"note  {text}")

    def models(self) -> dict[str, str]:
        """The models of the zoo, or those asked for: name, and what `laconic.load` opens."""
        found = {}
        for folder in sorted(p for p in self.zoo.iterdir() if (p / "model.safetensors").is_file()):
            plain = not (folder / "config.json").is_file()
            found[folder.name] = RESNET.format(folder) if plain else str(folder)
        if not found:
            raise SystemExit(f"{self.zoo}: no models there; give --zoo DIR")
        missing = [name for name in self.only or () if name not in found]
        if missing:
            raise SystemExit(f"{self.zoo}: no {missing[0]}; there are: {', '.join(found)}")
        return {name: found[name] for name in self.only or found}

    def language_models(self) -> dict[str, str]:
        """Those of `models` that predict text."""
        names = self.models()
        return {n: m for n, m in names.items() if self.data_for(m) == self.data / LANGUAGE_DATA}

    def data_for(self, model: str) -> Path:
        """What `model` is measured on."""
        config = Path(model) / "config.json"
        if not config.is_file():
            return self.data / IMAGE_DATA
        kind = json.loads(config.read_text()).get("model_type")
        return self.data / EVALUATION_DATA.get(kind, LANGUAGE_DATA)

    def cached(
        self, key: str, measure: Callable[[], Any],
        *, sources: Sequence[Path] | None = None, shared: bool = False,
    ) -> Any:  # fmt: skip
        """`measure()`, or what it returned before for the same key, sources, zoo, data and slice.

        An interrupted proof goes on where it stopped. `sources` are the files that a measurement
        depends on, where it is not of laconic: by default everything in src and benchmarks. What is
        `shared` is measured once for all proofs that ask for the same key.
        """
        code = _sources() if sources is None else _digest(sources)
        owner = "shared" if shared else self.result.name
        parts = (owner, key, self.slice, code, _stamp(self.zoo), _stamp(self.data))
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        file = CACHE / f"{digest}.json"
        if file.is_file() and not self.fresh:
            return json.loads(file.read_text())["value"]
        value = measure()
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"key": key, "value": value}))
        temporary.replace(file)
        return value

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time spent inside to the result."""
        started = time.perf_counter()
        yield
        self.result.seconds += time.perf_counter() - started


def _sources() -> str:
    """Digest of the code that measurements depend on."""
    folders = [ROOT / folder for folder in ("src", "benchmarks")]
    return _digest([path for folder in folders for path in sorted(folder.rglob("*.py"))])


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(folder: Path) -> str:
    """Names and sizes of the files in `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    return "\n".join(f"{p.relative_to(folder)} {p.stat().st_size}" for p in files)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
