"""Unaligned 64-bit loads and stores inside numba kernels (little endian)."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic


def _check(array: Any, written: bool = False) -> None:
    """Refuses, when a kernel is compiled, what offsets in bytes would go wrong on."""
    if array.dtype.bitwidth != 8 or array.layout != "C" or (written and not array.mutable):
        raise TypingError(f"contiguous bytes{' to write to' * written} expected, found {array}")


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    raw = builder.bitcast(data, ir.IntType(8).as_pointer())
    pointer = builder.gep(raw, [offset])
    return builder.bitcast(pointer, ir.IntType(64).as_pointer())


@intrinsic
def load_u64(typingctx: Any, array: Any, offset: Any) -> Any:
    """`load_u64(bytes, offset)`: the eight bytes from `offset` on, which need not be aligned."""
    _check(array)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        return builder.load(pointer, align=1)

    return types.uint64(array, types.int64), codegen


@intrinsic
def store_u64(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    """`store_u64(bytes, offset, value)`: writes eight bytes from `offset` on."""
    _check(array, written=True)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=1)
        return cgutils.get_null_value(ir.IntType(8).as_pointer())

    return types.void(array, types.int64, types.uint64), codegen
