"""What formats share: codes packed to their bits on any device, and rows cut into groups."""

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.coding import bitpack
from laconic.errors import CorruptFile, UsageError

PRECISION = torch.float32  # in which the formats compute


def pack(codes: Tensor, bits: int) -> Tensor:
    """Unsigned integer `codes` (any shape) of 1 to 16 bits as (ceil(n * bits / 8),) uint8.

    Raises:
        UsageError: a code is no integer or does not fit, or `bits` is no width.

    Example:
        >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 2)
        tensor([57], dtype=torch.uint8)
    """
    check_whole("bits", bits, 1, 16)
    if codes.device.type == "cpu":
        return torch.from_numpy(bitpack.pack(codes.numpy(), bits))
    return pack_by_torch(codes, bits)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes in `packed`, (count,): uint8 up to 8 bits, int32 above.

    Raises:
        CorruptFile: `packed` has not the bytes that they take.
    """
    if packed.device.type == "cpu":
        codes = torch.from_numpy(bitpack.unpack(packed.numpy(), bits, count))
        return codes if bits <= 8 else codes.int()
    return unpack_by_torch(packed, bits, count)


def pack_by_torch(codes: Tensor, bits: int) -> Tensor:
    """`pack` without a kernel: every eight codes make `bits` bytes; nothing is checked."""
    flat = codes.reshape(-1).int()
    lots = F.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    out = lots.new_zeros(lots.shape[0], bits)
    for j in range(8):
        first, shift = divmod(j * bits, 8)
        window = lots[:, j] << shift  # at most 23 bits
        for byte in range(first, (j * bits + bits + 7) // 8):
            out[:, byte] |= (window >> 8 * (byte - first)) & 255
    return out.to(torch.uint8).reshape(-1)[: bitpack.packed_size(flat.numel(), bits)]


def unpack_by_torch(packed: Tensor, bits: int, count: int) -> Tensor:
    """`unpack` without a kernel."""
    if packed.numel() != bitpack.packed_size(count, bits):
        raise CorruptFile(f"{count} codes of {bits} bits are not in {packed.numel()} bytes")
    lots = F.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits).int()
    codes = torch.empty(
        (lots.shape[0], 8), dtype=torch.uint8 if bits <= 8 else torch.int32, device=packed.device
    )
    for j in range(8):
        first, shift = divmod(j * bits, 8)
        window = torch.zeros_like(lots[:, 0])
        for byte in range(first, (j * bits + bits + 7) // 8):
            window |= lots[:, byte] << 8 * (byte - first)
        codes[:, j] = (window >> shift) & (2**bits - 1)
    return codes.reshape(-1)[:count]


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises `UsageError` unless `value` is a whole number in low..high; no `high`, no upper end."""
    if type(value) is not int or value < low or (high is not None and value > high):
        range_ = f"of at least {low}" if high is None else f"in {low}..{high}"
        raise UsageError(f"{name} must be a whole number {range_}, found {value!r}")


def check_packed(packed: Tensor, count: int, bits: int) -> None:
    """Raises `UsageError` unless `packed` is what `pack` makes of `count` codes."""
    check_whole("bits", bits, 1, 16)
    size = bitpack.packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise UsageError(
            f"{count} codes of {bits} bits take {size} bytes, found {packed.dtype} values of shape "
            f"{tuple(packed.shape)}"
        )


def at_rest(codes: Tensor, bits: int) -> Tensor:
    """`codes` as a state holds them: unpacked, uint8 or uint16; their entropy is coded there."""
    return codes.reshape(-1).to(torch.uint8 if bits <= 8 else torch.uint16)


def from_rest(codes: Tensor, count: int) -> Tensor:
    """The codes (any number) of a state as whole numbers below `count`.

    Raises:
        CorruptFile: one of them is not below it, or they are no unsigned integers.
    """
    if codes.dtype not in (torch.uint8, torch.uint16):
        raise CorruptFile(f"codes are stored as uint8 or uint16, found {codes.dtype}")
    whole = codes if codes.dtype == torch.uint8 else codes.int()
    if whole.numel() and int(whole.max()) >= count:
        raise CorruptFile(f"code {int(whole.max())} is not below {count}")
    return whole


def pack_at_rest(codes: Tensor, bits: object) -> Tensor:
    """The codes (any number) of a state, of `bits` bits as its header says, as `pack` packs them.

    Raises:
        UsageError: `bits` is no whole number in 1..16.
        CorruptFile: a code takes more bits, or they are no unsigned integers.
    """
    check_whole("bits", bits, 1, 16)  # before 2 ** bits, which a false header makes endless
    return pack(from_rest(codes, 2**bits), bits)  # type: ignore[operator, arg-type]


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a weight: all but the first dimension are columns."""
    rows = shape[0] if shape else 1
    return rows, (shape.numel() // rows if rows else 0)


def matrix(x: Tensor) -> Tensor:
    """`x` (R, ...) as (R, C) float32."""
    return x.reshape(matrix_shape(x.shape)).to(PRECISION)


def grouped(rows: Tensor, group: int) -> Tensor:
    """`rows` (R, C) as (R, G, group); a ragged last group is filled with zeros."""
    groups = -(-rows.shape[1] // group)
    return F.pad(rows, (0, -rows.shape[1] % group)).reshape(rows.shape[0], groups, group)


def spread(per_group: Tensor, columns: int, group: int) -> Tensor:
    """A value for each group (R, G) as one for each column (R, C); (., 1) serves all columns."""
    if per_group.shape[1] == 1:
        return per_group
    return per_group[:, torch.arange(columns, device=per_group.device) // group]
