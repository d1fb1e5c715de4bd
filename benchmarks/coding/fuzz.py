"""Hostile input: mutated files through every decoder and loader. Typed errors only.

Each target runs in a process of its own, so that a crash, a hang or a memory bomb is seen and named.
"""

import faulthandler
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import ROOT, Bench
from laconic.errors import LaconicError

COUNTS = {"quick": 5_000, "full": 100_000}
GROUPS = {
    "coders": (
        "tables", "bit packing", "blocks", "rans stream", "rans indexed stream", "huffman stream",
        "huffman indexed stream",
    ),
    "frames": ("compact frame", "indexed file"),
    "tensors": ("tensor blob",),
    "files": (
        "safetensors file", "run file", "inspect directory", "load compressed model",
        "load plain module",
    ),
}  # fmt: skip
SLOW = ("load compressed model", "load plain module", "inspect directory")
SLOW_SHARE = 0.006  # of all cases, for each slow target
HANG_S = 20
MEMORY = 8 << 30


@dataclass
class Target:
    """A decoder, valid inputs for it, and what it may do with altered ones.

    Attributes:
        samples: valid files.
        decode: reads one; its result is compared by equality.
        checked: whether an altered file must be refused, or decode to exactly the same.
    """

    samples: list[bytes]
    decode: Callable[[bytes], Any]
    checked: bool


def prove(bench: Bench) -> None:
    total = COUNTS[bench.slice]
    names = [name for names in GROUPS.values() for name in names]
    slow = max(20, int(SLOW_SHARE * total))
    fast = -(-(total - slow * len(SLOW)) // (len(names) - len(SLOW)))
    rows, cases, held = [], 0, True
    for name in names:
        count = slow if name in SLOW else fast
        run = bench.cached(f"{name} {count}", lambda n=name, c=count: _in_process(n, c))
        ok = run["ended"] and not run["problems"]
        bench.check(
            f"{name}: {count:,} mutated files, typed errors only",
            ok,
            refused=run["refused"],
            unharmed=run["same"],
            altered=run["altered"],
            problems=run["problems"][:3] or "none",
        )
        rows.append(
            [name, run["cases"], run["refused"], run["same"], run["altered"], run["seconds"]]
        )
        cases += run["cases"]
        held &= ok
    bench.check(
        f"{COUNTS[bench.slice]:,} mutated files through every decoder and loader",
        held and cases >= total,
        cases=cases,
    )
    bench.table(
        "what became of mutated files",
        ["decoder", "cases", "refused", "same result", "altered", "s"],
        rows,
    )
    bench.note(
        "`altered` is possible only where a format has no checksum: bare entropy-coded streams, "
        "and uncompressed tensors in safetensors files"
    )


def _in_process(name: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.coding.fuzz", name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {
            "ended": False,
            "problems": [f"process died: {tail[0]}"],
            "cases": 0,
            "refused": 0,
            "same": 0,
            "altered": 0,
            "seconds": 0.0,
        }
    return {"ended": True, **json.loads(done.stdout.strip().splitlines()[-1])}


def mutate(sample: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three edits: flips, noise, cuts, insertions, repeats, splices, runs of 0x00 or 0xff."""
    data = bytearray(sample)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        length = min(len(data) - at, rng.choice((1, 2, 4, 8, 64)))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 3, 8, 40)))
        elif kind == 5:
            data[at : at + length] = bytes([rng.choice((0, 255))]) * length
        elif kind == 6 and other:
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


def run_target(target: Target, count: int, seed: int = 0) -> dict[str, Any]:
    """Feeds `count` mutated files to a target."""
    rng = random.Random(seed)
    expected = [target.decode(sample) for sample in target.samples]
    tally = {"cases": 0, "refused": 0, "same": 0, "altered": 0}
    problems: list[str] = []
    started = time.perf_counter()
    for case in range(count):
        number = rng.randrange(len(target.samples))
        data = mutate(target.samples[number], rng.choice(target.samples), rng)
        signal.alarm(HANG_S)
        try:
            same = bool(target.decode(data) == expected[number])
            tally["same" if same else "altered"] += 1
            if not same and target.checked:
                problems.append(f"case {case}: an altered file was accepted")
        except LaconicError:
            tally["refused"] += 1
        except Exception as error:  # anything else is what this proof looks for
            problems.append(f"case {case}: {type(error).__name__}: {str(error)[:120]}")
        signal.alarm(0)
        tally["cases"] += 1
    return {**tally, "problems": problems[:20], "seconds": round(time.perf_counter() - started, 1)}


def find_target(name: str, work: Path) -> Target:
    """A decoder or loader by name; files are written below `work`."""
    group = next(group for group, names in GROUPS.items() if name in names)
    builders: dict[str, Callable[[], dict[str, Target]]] = {
        "coders": _coders,
        "frames": _frames,
        "tensors": _tensors,
        "files": lambda: _files(work),
    }
    return builders[group]()[name]


def _coders() -> dict[str, Target]:
    from laconic.coding import bitpack, blocks, huffman, rans, varint
    from laconic.coding.tables import Tables, histogram

    generator = np.random.default_rng(0)
    symbols = np.clip(generator.normal(120, 3, 3000), 0, 255).astype(np.uint8)
    tables = Tables.from_counts(histogram(symbols)[None])
    index = (np.arange(500) % 2).astype(np.uint16)
    two = Tables.from_counts(np.stack([histogram(symbols), histogram(symbols) + 1]))
    floats = generator.normal(0, 0.02, 4000).astype(np.float32)
    integers = generator.integers(0, 16, 3000).astype(np.uint8)
    compressed = [
        blocks.compress(data, dtype, engine=engine, chunk=4096, worthwhile=1.0).tobytes()
        for engine in blocks.ENGINES
        for data, dtype in (
            (floats, "F32"), (floats.view(np.uint32)[:2001] >> 16, "U32"), (integers, "U8"),
            ((floats.view(np.uint32) >> 16).astype(np.uint16), "BF16"), (np.zeros(9000, np.uint8), "U8"),
            (generator.integers(0, 255, 100).astype(np.uint8), "U8"), (np.arange(50), "I64"),
        )
    ]  # fmt: skip

    def array(data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8)

    def read_tables(data: bytes) -> list[Any]:
        reader = varint.Reader(data, "tables")
        return Tables.read(reader, 2).frequencies.tolist()

    found = {
        "tables": Target([two.to_bytes()], read_tables, False),
        "bit packing": Target(
            [bitpack.pack(integers, 4).tobytes()],
            lambda d: bitpack.unpack(array(d), 4, 3000).tolist(),
            False,
        ),
        "blocks": Target(compressed, lambda d: blocks.decompress(d).tobytes(), True),
    }
    for name, coder in (("rans", rans), ("huffman", huffman)):
        whole = coder.encode(symbols, 0, tables).tobytes()
        short = coder.encode(symbols[:500], index, two).tobytes()
        found[f"{name} stream"] = Target(
            [whole], lambda d, c=coder: c.decode(array(d), 3000, 0, tables).tobytes(), False
        )
        found[f"{name} indexed stream"] = Target(
            [short], lambda d, c=coder: c.decode(array(d), 500, index, two).tobytes(), False
        )
    return found


def _frames() -> dict[str, Target]:
    from laconic.coding.framing import Compact, IndexedReader, IndexedWriter, Section

    compact = Compact(
        7, (Section(0, b"head"), Section(1, bytes(range(200))), Section(2, b"")), b"12345678"
    )
    stream = io.BytesIO()
    with IndexedWriter(stream) as writer:
        for i in range(4):
            writer.add(f"tensor.{i}", bytes([i]) * (50 * i), dtype="U8", shape=[50 * i])

    def read_all(data: bytes) -> dict[str, Any]:
        reader = IndexedReader(data)
        return {name: (reader.read(name), reader.info(name)) for name in reader.names()}

    return {
        "compact frame": Target([compact.to_bytes()], Compact.from_bytes, True),
        "indexed file": Target([stream.getvalue()], read_all, True),
    }


def _tensors() -> dict[str, Target]:
    import torch

    from laconic.tensors import Dense, IntQuantizer, Stacked
    from laconic.tensors.stored import Record, decode_record, encode
    from laconic.tensors.transforms import ChannelScale

    torch.manual_seed(0)
    weight = torch.randn(24, 40).to(torch.bfloat16)
    values = [
        IntQuantizer(b, g, s).quantize(weight)
        for b, g, s in ((4, 16, True), (3, "row", False), (8, "tensor", True))
    ]
    values += [
        Dense(weight),
        Stacked((values[0], values[1]), 1),
        IntQuantizer(2, 64).quantize(torch.randn(3, 2, 3, 3)),
    ]
    records = [Record(value) for value in values]
    records.append(Record(values[0], ChannelScale(torch.rand(40) + 0.5), IntQuantizer(8, "row")))
    return {
        "tensor blob": Target(
            [encode(r) for r in records], lambda d: encode(decode_record(d)), True
        )
    }


def _files(work: Path) -> dict[str, Target]:
    import torch
    from torch import nn

    from laconic.compression import compress
    from laconic.loading import load
    from laconic.models.safetensors import read_header, read_tensor
    from laconic.quantize.rtn import RTN
    from laconic.report.inspection import inspect_path
    from laconic.report.points import collect
    from laconic.tensors.dtypes import to_raw

    torch.manual_seed(0)
    work = Path(tempfile.mkdtemp(dir=work, prefix="laconic-fuzz-"))
    llama, module = _tiny_llama(work), "laconic.zoo.resnet:resnet20"
    small, plain = work / "small", work / "plain"
    compress(str(llama), RTN(bits=4, group=32), out=small, also=("embeddings",))
    compress(module, RTN(bits=4), out=plain)
    scratch = work / "scratch.safetensors"

    def read_file(data: bytes) -> dict[str, bytes]:
        scratch.write_bytes(data)
        return {n: to_raw(read_tensor(e)).tobytes() for n, e in read_header(scratch).items()}

    def state(model: nn.Module) -> dict[str, bytes]:
        return {n: to_raw(t).tobytes() for n, t in model.state_dict().items()}

    def within(folder: Path, name: str, use: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        original = (folder / name).read_bytes()

        def decode(data: bytes) -> Any:
            (folder / name).write_bytes(data)
            try:
                return use(folder)
            finally:
                (folder / name).write_bytes(original)

        return decode

    def read_run(data: bytes) -> list[Any]:
        run = work / "run.json"
        run.write_bytes(data)
        return [point.to_json() for point in collect([run])]

    weights = "model.safetensors"
    return {
        "safetensors file": Target(
            [(llama / weights).read_bytes(), (small / weights).read_bytes()], read_file, False
        ),
        "run file": Target([(small / "laconic.json").read_bytes()], read_run, False),
        "inspect directory": Target(
            [(small / weights).read_bytes()],
            within(small, weights, lambda f: len(inspect_path(f))),
            False,
        ),
        "load compressed model": Target(
            [(small / weights).read_bytes()],
            within(small, weights, lambda f: state(load(f))),
            False,
        ),
        "load plain module": Target(
            [(plain / weights).read_bytes()],
            within(plain, weights, lambda f: state(load(f))),
            False,
        ),
    }


def _tiny_llama(work: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(work / "llama")
    return work / "llama"


def _main(name: str, count: int) -> None:
    """One target, in this process; prints its tally as JSON."""
    from laconic.cli._common import quiet_libraries

    faulthandler.enable()
    quiet_libraries()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def hang(*_: Any) -> None:
        raise TimeoutError(f"no result after {HANG_S} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as work:
        sys.stdout.write(json.dumps(run_target(find_target(name, Path(work)), count)) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
