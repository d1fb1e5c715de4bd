"""Bytes of files and of models in memory, and the memory of this process."""

from pathlib import Path

from torch import nn

from laconic.tensors.modules import CompressedModule

WEIGHT_SUFFIXES = (".safetensors", ".lac")


def stored_bytes(folder: Path) -> int:
    """`st_size` of the weight files in `folder`."""
    files = [path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    return sum(path.stat().st_size for path in files)


def resident_bytes(model: nn.Module) -> int:
    """What the weights of `model` occupy: parameters, buffers, compressed values; shared ones once."""
    compressed = [m.resident_bytes for m in model.modules() if isinstance(m, CompressedModule)]
    parts: dict[object, dict[tuple[int, int], int]] = {}  # by storage: where a tensor is in it
    whole: dict[object, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        key = id(tensor) if tensor.is_meta else (tensor.device, storage.data_ptr())
        where = int(tensor.storage_offset()), tensor.nbytes
        parts.setdefault(key, {})[where] = tensor.nbytes
        whole[key] = storage.nbytes()
    held = sum(min(whole[key], sum(found.values())) for key, found in parts.items())
    return held + sum(compressed)


def peak_rss_bytes() -> int:
    """`VmHWM`: the most memory that this process ever had resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")
