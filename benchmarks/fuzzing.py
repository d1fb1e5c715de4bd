"""Mutated files through decoders: typed errors only.

Each target runs in a process of its own, so that a crash, a hang or a memory bomb is seen and named. A proof names
its targets; its module is run with the name of one and a count.
"""

import faulthandler
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import ROOT, Bench
from laconic.errors import LaconicError

COUNTS = {"quick": 5_000, "full": 100_000}
SLOW_SHARE = 0.006  # of all cases, for each slow target
HANG_S = 20
MEMORY = 8 << 30

Find = Callable[[str, Path], "Target"]  # a target by name; it may write below the folder


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


def prove_all(bench: Bench, module: str, names: Sequence[str], slow: Sequence[str] = ()) -> None:
    """The checks and the table of a proof.

    Args:
        bench: of the proof.
        module: that `main` is called in.
        names: of its targets.
        slow: those of them that get few cases.
    """
    total = COUNTS[bench.slice]
    few = max(20, int(SLOW_SHARE * total))
    many = -(-(total - few * len(slow)) // (len(names) - len(slow)))
    rows, cases, held = [], 0, True
    for name in names:
        count = few if name in slow else many
        run = bench.cached(f"{name} {count}", lambda n=name, c=count: _in_process(module, n, c))
        ok = run["ended"] and not run["problems"]
        bench.check(
            f"{name}: {count:,} mutated files, typed errors only", ok,
            refused=run["refused"], unharmed=run["same"], altered=run["altered"],
            problems=run["problems"][:3] or "none",
        )  # fmt: skip
        rows.append(
            [name, run["cases"], run["refused"], run["same"], run["altered"], run["seconds"]]
        )
        cases += run["cases"]
        held &= ok
    bench.check(
        f"{total:,} mutated files through every decoder and loader", held and cases >= total,
        cases=cases,
    )  # fmt: skip
    bench.table(
        "what became of mutated files",
        ["decoder", "cases", "refused", "same result", "altered", "s"], rows,
    )  # fmt: skip


def _in_process(module: str, name: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", module, name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        nothing = {"cases": 0, "refused": 0, "same": 0, "altered": 0, "seconds": 0.0}
        return {"ended": False, "problems": [f"process died: {tail[0]}"], **nothing}
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


def main(find: Find) -> None:
    """One target, in this process, as the command line says; prints its tally as JSON."""
    name, count = sys.argv[1], int(sys.argv[2])
    from laconic.cli._common import quiet_libraries

    faulthandler.enable()
    quiet_libraries()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def hang(*_: Any) -> None:
        raise TimeoutError(f"no result after {HANG_S} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as work:
        sys.stdout.write(json.dumps(run_target(find(name, Path(work)), count)) + "\n")
