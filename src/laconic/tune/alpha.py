"""AlphaTuning: one frozen base of signs, and for each task nothing but scales (Kwon et al., 2022).

A weight in binary coding is a sum of scaled signs. The signs, its bulk, are shared by all tasks; a task trains the
scales of the first plane (or of all), one number a row or group, and keeps these in a file of its own.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.errors import CorruptFile, UsageError
from laconic.files import whole_file
from laconic.tensors import CompressedTensor
from laconic.tensors.binary import Binary
from laconic.tensors.modules import CompressedLinear
from laconic.tensors.packing import spread
from laconic.tune.unsettled import Unsettled

Planes = Literal["first", "all"]
FILE = "alpha.safetensors"
PRECISION = torch.float32


@dataclass(frozen=True, eq=False)
class TunedScales(Unsettled):
    """A binary coded weight with `alpha * (1 + delta)` in the place of its scales.

    Of products only those with signs are kept for the gradient: that of a
    whole weight is never formed where rows have one scale.

    Attributes:
        inner: the base.
        delta: (p, R, G) float32, of the first p planes.
    """

    inner: Binary
    delta: nn.Parameter

    kind: ClassVar[str] = "tuned scales"
    multiplies_dense: ClassVar[bool] = True

    @classmethod
    def of(cls, value: Binary, planes: Planes = "first") -> Self:
        """With nothing learned yet."""
        count = 1 if planes == "first" else value.bits
        return cls(
            value, nn.Parameter(torch.zeros(count, *value.alpha.shape[1:], device=value.device))
        )

    @property
    def free(self) -> Iterable[nn.Parameter]:
        return (self.delta,)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        columns = self.inner.shape[1:].numel()
        value = self.inner._dense_by_torch()
        for signs, moved in zip(self._signs(), self._moved()):
            value = value + signs * spread(moved, columns, self.inner.group)
        return value.reshape(self.shape).to(dtype or self.dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`."""
        if self.delta.shape[2] > 1 or len(self.shape) > 2:
            return super().matmul(x, bias)
        wide = x.to(PRECISION)
        y = F.linear(wide, self.inner._dense_by_torch())
        for signs, moved in zip(self._signs(), self._moved()):
            y = y + F.linear(wide, signs) * moved.squeeze(1)
        return (y if bias is None else y + bias).to(x.dtype)

    def settled(self) -> Binary:
        return replace(self.inner, alpha=self.scales())

    def scales(self) -> Tensor:
        """(q, R, G) all scales, as they are stored."""
        count = len(self.delta)
        learned = self.inner.alpha[:count].to(PRECISION) * (1 + self.delta.detach())
        return torch.cat([learned.to(self.inner.alpha.dtype), self.inner.alpha[count:]])

    def _signs(self) -> Tensor:
        """(p, R, C) of -1 and 1."""
        return 2 * self.inner.signs()[: len(self.delta)].to(PRECISION) - 1

    def _moved(self) -> Tensor:
        """(p, R, G) what was added to the scales, with gradients."""
        before = self.inner.alpha[: len(self.delta)].to(PRECISION)
        free = before * (1 + self.delta)
        kept = free.detach().to(self.inner.alpha.dtype).to(PRECISION)
        return free + (kept - free.detach()) - before


def add_scales(model: nn.Module, planes: Planes = "first") -> list[nn.Parameter]:
    """Sets the scales of all binary coded layers free, and freezes everything else.

    Args:
        model: changed in place; compressed by `bcq`.
        planes: whether the scales of the `first` plane, the largest, are trained, or those of `all`.

    Returns:
        What is to be trained: changes of scales as shares of them, so that one rate suits all.

    Raises:
        UsageError: no layer of the model is binary coded.

    Example:
        >>> from laconic.quantize.alphatuning import BCQ
        >>> import laconic
        >>> model = laconic.compress(nn.Sequential(nn.Linear(16, 4)), BCQ()).model
        >>> add_scales(model)[0].shape
        torch.Size([1, 4, 1])
    """
    if planes not in get_args(Planes):
        raise UsageError(f"planes must be one of {get_args(Planes)}, found {planes!r}")
    found = {path: module for path, module in _layers(model) if isinstance(module.weight, Binary)}
    if not found:
        raise UsageError("no layer is binary coded: compress the model with the method bcq first")
    model.requires_grad_(False)
    free = []
    for module in found.values():
        value = TunedScales.of(module.weight, planes)
        _install(module, value)
        free.append(value.delta)
    return free


def settle_scales(model: nn.Module) -> nn.Module:
    """Makes what was learned part of the weights; the model can be saved then."""
    for _, module in _layers(model):
        if isinstance(module.weight, TunedScales):
            _install(module, module.weight.settled())
    return model


def save_scales(model: nn.Module, folder: str | Path) -> Path:
    """Writes the scales of a task to `alpha.safetensors` in `folder`; the base is named by its signs.

    Raises:
        UsageError: the model has no scales set free.
    """
    tuned = {p: m.weight for p, m in _layers(model) if isinstance(m.weight, TunedScales)}
    if not tuned:
        raise UsageError("no scales are set free: see add_scales")
    out = Path(folder)
    tensors = {p: w.scales()[: len(w.delta)].cpu().contiguous() for p, w in tuned.items()}
    base = _digest({path: value.inner for path, value in tuned.items()})
    with whole_file(out / FILE) as temporary:
        save_file(tensors, temporary, metadata={"laconic": json.dumps({"base": base})})
    return out


def load_scales(model: nn.Module, folder: str | Path) -> nn.Module:
    """Gives a base the scales of a task, in place of those that it has.

    Raises:
        CorruptFile: the file is missing or damaged.
        UsageError: it is of another base; its signs differ.
    """
    settle_scales(model)
    base, scales = _read(Path(folder) / FILE)
    values = {p: m.weight for p, m in _layers(model) if isinstance(m.weight, Binary)}
    missing = [path for path in scales if path not in values]
    if missing or _digest({path: values[path] for path in scales}) != base:
        what = f"{missing[0]} is not binary coded here" if missing else "the signs are others"
        raise UsageError(f"{folder} holds scales of another base: {what}")
    for path, scale in scales.items():
        value = values[path]
        alpha = torch.cat([scale.to(value.alpha), value.alpha[len(scale) :]])
        _install(model.get_submodule(path), replace(value, alpha=alpha))
    return model


def _layers(model: nn.Module) -> list[tuple[str, CompressedLinear]]:
    return [(p, m) for p, m in model.named_modules() if isinstance(m, CompressedLinear)]


def _install(module: Any, value: CompressedTensor) -> None:
    module.records["weight"] = replace(module.records["weight"], weight=value)
    module.operands = {}


def _digest(values: Mapping[str, Binary]) -> str:
    """Names a base by the signs of its layers."""
    digest = hashlib.sha256()
    for path, value in sorted(values.items()):
        digest.update(f"{path} {list(value.shape)} {value.bits}\n".encode())
        digest.update(value.planes.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            base = json.loads((opened.metadata() or {})["laconic"])["base"]
            return str(base), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CorruptFile(f"{file}: no scales of a task: {error!r}") from error
