"""`export`: a model that laconic compressed, in the files of another tool."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from laconic.errors import UnsupportedModel, UsageError, did_you_mean
from laconic.exchange.compressed_folder import CompressedFolder
from laconic.exchange.compressed_tensors import CompressedTensorsWriter
from laconic.exchange.gguf import write_gguf
from laconic.exchange.gptq import GPTQWriter
from laconic.exchange.uniform import UniformLayer, rounding_of, without_factors
from laconic.files import expect_free
from laconic.measure.resources import stored_bytes
from laconic.models.directory import DirectorySink
from laconic.tensors.modules import is_conv1d
from laconic.tune.adapter_files import save_factors

Target = Literal["compressed-tensors", "gptq", "gguf", "peft"]
ADAPTER = "adapter"  # folder beside the weights, for factors that were added to them
WRITERS: dict[str, type[CompressedTensorsWriter] | type[GPTQWriter]] = {
    "compressed-tensors": CompressedTensorsWriter,
    "gptq": GPTQWriter,
}


@dataclass(frozen=True)
class Export:
    """What `export` did.

    Attributes:
        path: what was exported.
        to: the format.
        out: where it is.
        layers: how many were written as codes.
        stored_bytes: of the weight files there.
        rounding: the greatest relative change of a scale that the format's dtype made; 0 for none.
        notes: what the user should know.
    """

    path: str
    to: str
    out: str
    layers: int
    stored_bytes: int
    rounding: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def export(path: str | Path, to: Target, out: str | Path, *, overwrite: bool = False) -> Export:
    """Writes a model that laconic compressed so that other tools open it.

    Only weights that are integers on uniform grids can be said in these formats (`rtn`, `gptq`, `awq`
    folded into scales excepted, `obq`, `requant` at p = 1, `hqq`, mixed widths in compressed-tensors).

    Args:
        path: a directory that `laconic compress` wrote.
        to: `compressed-tensors` (pack-quantized: vLLM, transformers), `gptq` (GPTQModel, vLLM,
            transformers), `gguf` (llama.cpp), or `peft`: only the factors of low rank that `eora` added, as
            an adapter for the model without them.
        out: the directory to make; of `gguf`, the file.
        overwrite: whether what is there is replaced, once the new one is complete.

    Raises:
        UnsupportedModel: the format cannot say what a layer is; nothing is written.
        OutputExists: `out` is there.
        MissingExtra: compressed-tensors or gguf is not installed.
    """
    if to not in get_args(Target):
        raise UsageError(f"unknown format {to!r}; {did_you_mean(to, get_args(Target))}")
    folder, out = CompressedFolder(Path(path)), Path(out)
    try:
        if to == "peft":
            return _write_adapter(folder, out, overwrite)
        if to == "gguf":
            count, rounding, notes = write_gguf(folder, out, overwrite)
            return Export(str(path), to, str(out), count, out.stat().st_size, rounding, notes)
        count, rounding, notes = _write_directory(folder, WRITERS[to](), out, overwrite)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path} cannot be written as {to}: {error}") from error
    return Export(str(path), to, str(out), count, stored_bytes(out), rounding, notes)


def _write_directory(
    folder: CompressedFolder, writer: CompressedTensorsWriter | GPTQWriter, out: Path, overwrite: bool
) -> tuple[int, float, tuple[str, ...]]:  # fmt: skip
    """Streams all parts of `folder`; how many layers there were, the rounding of their scales, and notes."""
    count, rounding = 0, 0.0
    plain = {n for n, m in folder.skeleton.named_modules() if isinstance(m, nn.Linear)}
    factors: dict[str, tuple[Tensor, Tensor]] = {}

    def save_config(target: Path, modules: list[str]) -> None:
        folder.save_config(target, writer.config())
        if factors:
            save_factors(target / ADAPTER, factors, base=str(out), transposed=transposed)

    transposed = any(is_conv1d(module) for module in folder.skeleton.modules())
    with DirectorySink(out, save_config, overwrite=overwrite) as sink:
        for part in folder.parts():
            if not isinstance(part, UniformLayer):
                sink.put_tensor(*part)
                continue
            dtype = folder.skeleton.get_submodule(part.path).get_parameter("weight").dtype
            for name, tensor in writer.tensors(part, dtype).items():
                sink.put_tensor(name, tensor)
            rounding = max(rounding, rounding_of(part, writer.scales_in(dtype)))
            if part.factors is not None:
                factors[part.path] = part.factors
            plain.discard(part.path)
            count += 1
        if not count:
            raise UnsupportedModel("none of its layers is compressed")
        for path in sorted(plain):
            writer.leave(path)
    note = f"what was added in low rank is an adapter in {out / ADAPTER}: load it with peft, or vLLM's LoRA"
    return count, rounding, (note,) if factors else ()


def _write_adapter(folder: CompressedFolder, out: Path, overwrite: bool) -> Export:
    """Writes only the factors that were added to layers."""
    found, transposed = {}, False
    for path, module, record in folder.records():
        pair = without_factors(record.weight)[1]
        if pair is None:
            continue
        if record.transform is not None:
            raise UnsupportedModel(f"{path} has a {record.transform.kind} before it")
        found[path] = pair
        transposed |= is_conv1d(module)
    if not found:
        raise UnsupportedModel(
            "nothing of low rank was added to its layers: put eora behind a method"
        )
    expect_free(out, overwrite)
    save_factors(out, found, base=str(folder.folder), transposed=transposed)
    size = sum(a.nbytes + b.nbytes for a, b in found.values())
    return Export(str(folder.folder), "peft", str(out), len(found), size)
