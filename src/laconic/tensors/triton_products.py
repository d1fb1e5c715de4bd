"""Products of single inputs with packed weights on a GPU: codes are decoded in registers and nowhere else.

For few inputs a product takes as long as it takes to read the weight, so reading codes in place of
values is what makes it fast. Imported only where a GPU is: it needs triton, which torch brings there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
ROWS, LOTS, WARPS = 8, 128, 4  # of a tile of codes of weights
VECTOR_ROWS, VECTOR_WEIGHTS, VECTOR_WARPS = 16, 1024, 8  # of one of codes of vectors


def grouped_product(
    x: Tensor, packed: Tensor, bits: int, group: int, scale: Tensor, zero: Tensor | None,
    rows: int, bias: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """`x @ W.T + bias` (N, R) for x (N, C) and a weight as `Grouped` keeps it, summed in float32.

    Returns:
        None where the kernel cannot: rows that do not begin with a byte or groups that split eight codes.
    """
    columns = x.shape[1]
    if columns % 8 or (group % 8 and group < columns):
        return None
    out = x.new_empty(len(x), rows)
    words, whole = _words(packed, bits, 8)
    lots = min(LOTS, triton.next_power_of_2(columns // 8))
    _grouped[(len(x), triton.cdiv(rows, ROWS))](
        x, words, scale, zero, bias, out, rows, columns,
        scale.shape[1] if scale.shape[0] > 1 else 0, 1 if scale.shape[1] > 1 else 0,
        BITS=bits, WHOLE=whole, GROUP=group, BLOCK_ROWS=ROWS, LOTS=lots, num_warps=WARPS,
    )  # fmt: skip
    return out


def vector_product(
    x: Tensor, packed: Tensor, bits: int, tables: Tensor, rows: int, stages: int, bias: Tensor | None,
    *, patch: tuple[int, int, int] = (0, 0, 0), table_scale: Tensor | None = None,
    scale: Tensor | None = None, scale_block: int = 0,
) -> Tensor | None:  # fmt: skip
    """`x @ W.T + bias` (N, R) for x (N, C) and a weight of indices of vectors, summed in float32.

    Args:
        packed: R rows of vectors, `stages` codes of `bits` bits each.
        tables: (T, K, dim); with several stages one for each, otherwise one for each patch.
        patch: rows and vectors of a patch, and patches beside one another; zeros where one table serves
            all.
        table_scale: (T,) or None.
        scale: (R, B), of `scale_block` columns each, or None.

    Returns:
        None where the kernel cannot: rows that do not begin with a byte, vectors of no power of two,
        patches or scales that split a lot of eight codes (four, if they are longer than a byte).
    """
    count, dim = tables.shape[1:]
    vectors = -(-x.shape[1] // dim)
    lot = 8 if bits <= 8 else 4
    span = lot * dim // stages  # columns of a lot
    split = patch[1] % lot or (scale_block % span and scale_block < x.shape[1])
    if (vectors * stages) % lot or lot * bits % 8 or lot % stages or dim & (dim - 1) or split:
        return None
    out = x.new_empty(len(x), rows)
    words, whole = _words(packed, bits, lot)
    most = triton.next_power_of_2(vectors * stages // lot)
    lots = max(1, min(VECTOR_WEIGHTS // (lot * dim), most))
    _vectors[(len(x), triton.cdiv(rows, VECTOR_ROWS))](
        x, words, tables, table_scale, scale, bias, out, rows, x.shape[1], vectors * stages // lot,
        count, *patch, 0 if scale is None else scale.shape[1],
        BITS=bits, WHOLE=whole, LOT=lot, STAGES=stages, DIM=dim, SCALE_BLOCK=scale_block,
        BLOCK_ROWS=VECTOR_ROWS, LOTS=lots, num_warps=VECTOR_WARPS,
    )  # fmt: skip
    return out


def _words(packed: Tensor, bits: int, lot: int) -> tuple[Tensor, bool]:
    """The codes by word, where a lot of them is one; else by byte."""
    dtype = WORDS.get(bits * lot // 8)
    if dtype is None or packed.data_ptr() % dtype.itemsize or packed.numel() % dtype.itemsize:
        return packed, False
    return packed.view(dtype), True


@triton.jit
def _lots(words, at, inside, SIZE: tl.constexpr, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The lots `at`, each in one integer; SIZE bytes make one."""
    if WHOLE:
        word = tl.load(words + at, mask=inside, other=0)
    else:
        word = tl.load(words + at * SIZE, mask=inside, other=0).to(tl.int64)
        for byte in tl.static_range(1, SIZE):
            more = tl.load(words + at * SIZE + byte, mask=inside, other=0).to(tl.int64)
            word |= more << (8 * byte)
    return word


@triton.jit
def _grouped(  # type: ignore[no-untyped-def]
    x, words, scale, zero, bias, out, rows, columns, scale_row, scale_group,
    BITS: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, LOTS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    per_row = columns // 8
    total = tl.zeros((BLOCK_ROWS, LOTS), tl.float32)
    for start in range(0, per_row, LOTS):
        lot = start + tl.arange(0, LOTS)
        inside = (row[:, None] < rows) & (lot[None, :] < per_row)
        word = _lots(words, row[:, None].to(tl.int64) * per_row + lot[None, :], inside, BITS, WHOLE)
        step = row[:, None] * scale_row + (lot[None, :] * 8 // GROUP) * scale_group
        if zero is None:
            offset = 2.0 ** (BITS - 1)
        else:
            offset = tl.load(zero + step, mask=inside, other=0).to(tl.float32)
        dot = tl.zeros((BLOCK_ROWS, LOTS), tl.float32)
        for place in tl.static_range(8):
            code = ((word >> (place * BITS)) & (2**BITS - 1)).to(tl.int32)
            value = (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + offset)
            some = tl.load(x + number * columns + lot * 8 + place, mask=lot < per_row, other=0)
            dot += value * some.to(tl.float32)[None, :]  # the exponent of 2^23 spares a conversion
        total += dot * tl.load(scale + step, mask=inside, other=0).to(tl.float32)
    _store(tl.sum(total, axis=1), bias, out, number, row, rows)


@triton.jit
def _vectors(  # type: ignore[no-untyped-def]
    x, words, tables, table_scale, scale, bias, out, rows, columns, per_row, entries,
    patch_rows, patch_vectors, patches_across, scale_row,
    BITS: tl.constexpr, WHOLE: tl.constexpr, LOT: tl.constexpr, STAGES: tl.constexpr,
    DIM: tl.constexpr, SCALE_BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr, LOTS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    place, along = tl.arange(0, LOT), tl.arange(0, DIM)
    total = tl.zeros((BLOCK_ROWS, LOTS), tl.float32)
    for start in range(0, per_row, LOTS):
        lot = start + tl.arange(0, LOTS)
        inside = (row[:, None] < rows) & (lot[None, :] < per_row)
        at = row[:, None].to(tl.int64) * per_row + lot[None, :]
        word = _lots(words, at, inside, BITS * LOT // 8, WHOLE)
        first = lot * (LOT // STAGES)  # vector of a lot
        table = row[:, None] * 0 + lot[None, :] * 0
        if patch_rows > 0:
            table += (row // patch_rows)[:, None] * patches_across + (first // patch_vectors)[
                None, :
            ]
            table = tl.where(inside, table, 0)
        code = ((word[:, :, None] >> (place * BITS)[None, None, :]) & (2**BITS - 1)).to(tl.int32)
        entry = (table[:, :, None] + (place % STAGES)[None, None, :]) * entries + code
        value = tl.load(tables + entry[:, :, :, None] * DIM + along[None, None, None, :])
        vector = first[:, None] + (place // STAGES)[None, :]
        column = vector[:, :, None] * DIM + along[None, None, :]
        some = tl.load(x + number * columns + column, mask=column < columns, other=0)
        product = value.to(tl.float32) * some.to(tl.float32)[None, :, :, :]
        dot = tl.sum(tl.sum(product, axis=3), axis=2)
        if table_scale is not None:
            dot *= tl.load(table_scale + table).to(tl.float32)
        if SCALE_BLOCK > 0:
            step = row[:, None] * scale_row + (first * DIM // SCALE_BLOCK)[None, :]
            dot *= tl.load(scale + step, mask=inside, other=0).to(tl.float32)
        total += dot
    result = tl.sum(total, axis=1)
    if scale is not None and SCALE_BLOCK == 0:
        result *= tl.load(scale + row, mask=row < rows, other=0).to(tl.float32)
    _store(result, bias, out, number, row, rows)


@triton.jit
def _store(result, bias, out, number, row, rows):  # type: ignore[no-untyped-def]
    if bias is not None:
        result += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)
    tl.store(out + number * rows + row, result.to(out.dtype.element_ty), mask=row < rows)
