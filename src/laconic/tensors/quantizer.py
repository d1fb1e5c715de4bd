"""`Quantizer`: real numbers to integer codes and back, the protocol that every format shares."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from laconic.errors import BadWeights, CorruptFile, did_you_mean
from laconic.tensors.compressed import CompressedTensor

Params = TypeVar("Params")


class Quantizer(ABC, Generic[Params]):
    """Maps tensors onto a finite set of values; a frozen dataclass whose fields are its settings.

        x --fit--> params;  x, params --encode--> codes;  codes, params --decode--> x'

    Post-training methods, quantization-aware training, KV caches and the capacity metric all use
    these verbs; `quantize` packs the result as the value of a weight.
    """

    kind: ClassVar[str]

    @abstractmethod
    def fit(self, x: Tensor) -> Params:
        """Scales, codebooks, ... for `x`."""

    @abstractmethod
    def encode(self, x: Tensor, params: Params) -> Tensor:
        """Integer codes of `x`."""

    @abstractmethod
    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The values that `codes` stand for, float32."""

    @abstractmethod
    def pack(self, codes: Tensor, params: Params, like: Tensor) -> CompressedTensor:
        """Codes and parameters as a compressed tensor with the dtype of `like`."""

    def project(self, x: Tensor) -> Tensor:
        """The nearest representable values, `decode(encode(x))`, in the dtype of `x`."""
        params = self.fit(x)
        return self.decode(self.encode(x, params), params).to(x.dtype)

    def quantize(self, x: Tensor) -> CompressedTensor:
        """`x` as a compressed tensor; raises `BadWeights` if it holds NaN or infinity."""
        if not torch.isfinite(x).all():
            raise BadWeights("the tensor holds NaN or infinity, which no grid represents")
        params = self.fit(x)
        return self.pack(self.encode(x, params), params, x)

    def stored_bits(self, x: Tensor) -> float:
        """Bits per value at rest, entropy coded, side information included."""
        return 8 * self.quantize(x).stored_bytes / max(1, x.numel())

    def settings(self) -> dict[str, Any]:
        """Kind and fields as JSON values; `from_settings` reads them back."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


_KINDS: dict[str, type[Quantizer[Any]]] = {}


def register_quantizer(cls: type[Quantizer[Any]]) -> None:
    """Makes `cls` known to `from_settings` under its `kind`."""
    if _KINDS.setdefault(cls.kind, cls) is not cls:
        raise ValueError(f"two quantizers claim the kind {cls.kind!r}")


def from_settings(settings: dict[str, Any]) -> Quantizer[Any]:
    """The quantizer that `settings()` described."""
    fields = dict(settings)
    kind = fields.pop("kind", "")
    if kind not in _KINDS:
        raise CorruptFile(f"unknown quantizer {kind!r}; {did_you_mean(kind, _KINDS)}")
    return _KINDS[kind](**fields)
