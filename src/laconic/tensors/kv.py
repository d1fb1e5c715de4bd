"""A quantized key-value cache: keys channel by channel, values token by token, recent ones whole."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.packing import PRECISION, pack, unpack


@dataclass(frozen=True)
class KVQuantizer:
    """How a cache is quantized.

    Keys have a few channels with large values, so that each channel gets a grid of its own for every
    `group` tokens; values have none, and each token gets one for every `group` channels. Grids run
    from the least to the greatest value of a group. The newest tokens stay as they are.

    Args:
        key_bits: 2 to 8.
        value_bits: 2 to 8.
        group: tokens, or channels, that share a grid; a multiple of 8. Where it does not divide the
            channels of the values, their largest divisor below it is taken.
        residual: the newest tokens that are never quantized, at least 0; up to `group - 1` more
            wait until a group is full.

    Source: KIVI (Liu et al., 2024, arXiv 2402.02750), section 3.

    Example:
        >>> cache = QuantizedKV(KVQuantizer(group=8, residual=0))
        >>> cache.append(torch.ones(1, 1, 9, 4), torch.ones(1, 1, 9, 4))
        >>> cache.quantized, cache.length
        (8, 9)
    """

    key_bits: int = 2
    value_bits: int = 2
    group: int = 32
    residual: int = 128

    def __post_init__(self) -> None:
        for name in ("key_bits", "value_bits"):
            bits = getattr(self, name)
            if not isinstance(bits, int) or not 2 <= bits <= 8:
                raise UsageError(f"{name} must be a whole number in 2..8, found {bits!r}")
        if not isinstance(self.group, int) or self.group < 8 or self.group % 8:
            raise UsageError(f"group must be a multiple of 8, found {self.group!r}")
        if not isinstance(self.residual, int) or self.residual < 0:
            raise UsageError(f"residual must be a number >= 0, found {self.residual!r}")


class Affine(NamedTuple):
    """Values as codes on a grid for each group: `low + code * scale`.

    Attributes:
        packed: uint8, the codes.
        low: (groups,) float16 for values of that dtype, else bfloat16.
        scale: (groups,) likewise.
    """

    packed: Tensor
    low: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor, bits: int) -> "Affine":
        """Quantizes `values` (groups, n), where groups * n is a multiple of 8."""
        kept = torch.float16 if values.dtype == torch.float16 else torch.bfloat16
        wide = values.to(PRECISION)
        least, most = wide.aminmax(dim=1)
        low = least.to(kept)
        span = (most - low.to(PRECISION)).clamp(min=0)
        scale = (span / (2**bits - 1)).to(kept).clamp(min=torch.finfo(kept).tiny)
        steps = (wide - low.to(PRECISION)[:, None]) / scale.to(PRECISION)[:, None]
        codes = steps.round_().clamp_(0, 2**bits - 1).to(torch.uint8)
        return cls(pack(codes, bits), low, scale)

    def values(self, bits: int, length: int) -> Tensor:
        """(groups, length) float32."""
        codes = unpack(self.packed, bits, self.low.numel() * length).reshape(-1, length)
        return self.low.to(PRECISION)[:, None] + codes * self.scale.to(PRECISION)[:, None]

    def followed_by(self, other: "Affine | None") -> "Affine":
        """These groups and those of `other` behind them."""
        return self if other is None else Affine(*map(torch.cat, zip(self, other)))


class QuantizedKV:
    """The keys and values of one layer, of which only the newest are kept as they came.

    Tokens may be appended in any portions: the result depends on the tokens alone.

    Attributes:
        quantizer: how it quantizes.
        quantized: tokens that are quantized.
    """

    def __init__(self, quantizer: KVQuantizer) -> None:
        self.quantizer = quantizer
        self.quantized = 0
        self._keys: Affine | None = None
        self._values: Affine | None = None
        self._recent: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.quantized + (0 if self._recent is None else self._recent[0].shape[2])

    @property
    def resident_bytes(self) -> int:
        """Bytes that codes, grids and recent tokens occupy."""
        held = [*(self._keys or ()), *(self._values or ()), *(self._recent or ())]
        return sum(tensor.nbytes for tensor in held)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Adds `keys` (B, H, t, D) and `values` (B, H, t, E) of t new tokens.

        Raises:
            UsageError: they do not fit each other or what is there.
        """
        self._check(keys, values)
        recent = self._recent or (keys[:, :, :0], values[:, :, :0])
        keys, values = torch.cat([recent[0], keys], 2), torch.cat([recent[1], values], 2)
        group = self.quantizer.group
        count = max(0, keys.shape[2] - self.quantizer.residual) // group * group
        if count:
            fresh = Affine.of(self._key_rows(keys[:, :, :count]), self.quantizer.key_bits)
            self._keys = fresh if self._keys is None else self._keys.followed_by(fresh)
            fresh = Affine.of(self._value_rows(values[:, :, :count]), self.quantizer.value_bits)
            self._values = fresh if self._values is None else self._values.followed_by(fresh)
            self.quantized += count
        self._recent = keys[:, :, count:].clone(), values[:, :, count:].clone()

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys (B, H, T, D) and values (B, H, T, E) of all tokens, in the dtype that came.

        Raises:
            UsageError: nothing was appended yet.
        """
        if self._recent is None:
            raise UsageError("the cache is empty: append keys and values first")
        keys, values = self._recent
        if self._keys is None or self._values is None:
            return keys, values
        batch, heads, _, width = keys.shape
        group = self.quantizer.group
        rows = self._keys.values(self.quantizer.key_bits, group)
        old = rows.reshape(-1, batch, heads, width, group).permute(1, 2, 0, 4, 3)
        old_keys = old.reshape(batch, heads, self.quantized, width).to(keys.dtype)
        rows = self._values.values(self.quantizer.value_bits, self._value_group(values))
        old = rows.reshape(self.quantized, batch, heads, values.shape[3]).permute(1, 2, 0, 3)
        return torch.cat([old_keys, keys], 2), torch.cat([old.to(values.dtype), values], 2)

    def _key_rows(self, keys: Tensor) -> Tensor:
        """Groups of tokens of one channel, (rows, group): later tokens behind earlier ones."""
        batch, heads, tokens, width = keys.shape
        group = self.quantizer.group
        runs = keys.reshape(batch, heads, tokens // group, group, width)
        return runs.permute(2, 0, 1, 4, 3).reshape(-1, group)

    def _value_rows(self, values: Tensor) -> Tensor:
        """Groups of channels of one token, (rows, group): later tokens behind earlier ones."""
        return values.permute(2, 0, 1, 3).reshape(-1, self._value_group(values))

    def _value_group(self, values: Tensor) -> int:
        width = values.shape[3]
        return next(n for n in range(min(self.quantizer.group, width), 0, -1) if width % n == 0)

    def _check(self, keys: Tensor, values: Tensor) -> None:
        if keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3]:
            raise UsageError(
                f"keys and values must be (B, H, t, D), found {tuple(keys.shape)} and "
                f"{tuple(values.shape)}"
            )
        if 0 in (*keys.shape[:2], keys.shape[3], values.shape[3]):
            raise UsageError(f"keys and values of no heads or channels: {tuple(keys.shape)}")
        for new, old in zip((keys, values), self._recent or ()):
            if new.shape[:2] + new.shape[3:] != old.shape[:2] + old.shape[3:]:
                raise UsageError(
                    f"a cache of {tuple(old.shape)} cannot go on with {tuple(new.shape)}"
                )
