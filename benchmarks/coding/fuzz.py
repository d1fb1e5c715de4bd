"""Hostile input: mutated files through every decoder and loader. Typed errors only."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.fuzzing import Target, main, prove_all

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


def prove(bench: Bench) -> None:
    names = [name for names in GROUPS.values() for name in names]
    prove_all(bench, "benchmarks.coding.fuzz", names, SLOW)
    bench.note(
        "`altered` is possible only where a format has no checksum: bare entropy-coded streams, "
        "and uncompressed tensors in safetensors files"
    )


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


if __name__ == "__main__":
    main(find_target)
