"""What torch's operators multiply, from the shapes of their arguments."""

from collections.abc import Callable
from functools import partial
from typing import Any

from laconic.measure.operations import Operation, attention_operation, conv_operation

#: Operators that multiply and are not counted, by the beginnings of their names.
HEAVY = (
    "_fft", "fft", "_linalg", "linalg", "_cudnn_rnn", "mkldnn_rnn", "miopen_rnn", "_cdist", "cdist",
    "_native_multi_head", "_transformer_encoder", "_efficient_attention", "_flash_attention",
    "_grouped_mm", "_scaled_grouped_mm", "_int_mm", "_weight_int", "_embedding_bag",
)  # fmt: skip


def _matrices(a: int, b: int, args: tuple[Any, ...], output: Any) -> Operation:
    """A product (..., m, k) x (..., k, n) of the arguments number `a` and `b`."""
    left, right = args[a], args[b]
    rows = left.shape[-2] if left.ndim > 1 else 1
    columns = right.shape[-1] if right.ndim > 1 else 1
    batch = left.shape[0] if left.ndim > 2 else 1
    return Operation.of(
        "product", batch=batch, rows=rows, inner=left.shape[-1], columns=columns
    )  # fmt: skip


def _functional_conv(args: tuple[Any, ...], output: Any) -> Operation:
    x, weight, _, stride, padding, dilation, transposed, _, groups, *_ = args
    geometry = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "transposed": transposed,
    }  # fmt: skip
    return conv_operation(x.shape, weight.shape, output.shape, geometry)


def _fused_attention(args: tuple[Any, ...], output: Any) -> Operation:
    return attention_operation(args[0], args[1], args[2], False)


#: What the operators multiply, by their names in aten.
PRODUCTS: dict[str, Callable[[tuple[Any, ...], Any], Operation]] = {
    "mm": partial(_matrices, 0, 1),
    "mv": partial(_matrices, 0, 1),
    "dot": partial(_matrices, 0, 1),
    "bmm": partial(_matrices, 0, 1),
    "_scaled_mm": partial(_matrices, 0, 1),
    "addmm": partial(_matrices, 1, 2),
    "addmv": partial(_matrices, 1, 2),
    "baddbmm": partial(_matrices, 1, 2),
    "convolution": _functional_conv,
    "_convolution": _functional_conv,
    "_scaled_dot_product_flash_attention": _fused_attention,
    "_scaled_dot_product_flash_attention_for_cpu": _fused_attention,
    "_scaled_dot_product_efficient_attention": _fused_attention,
    "_scaled_dot_product_cudnn_attention": _fused_attention,
}
