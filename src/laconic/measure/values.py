"""What a compressed weight costs to multiply with: the numbers that its format keeps."""

from torch import nn

from laconic.tensors.combined import Sum, Transformed
from laconic.tensors.compressed import CompressedTensor, InputTransform
from laconic.tensors.lowrank import LowRank
from laconic.tensors.masked import Masked, MaskedCodes
from laconic.tensors.modules import CompressedModule
from laconic.tensors.stacked import Stacked
from laconic.tensors.transforms import BlockDiagonal, Chain, Hadamard


def kept(value: CompressedTensor) -> int:
    """Numbers that a compressed weight multiplies with: factors, unmasked weights, codes.

    Example:
        >>> import torch
        >>> from laconic.tensors import Dense
        >>> kept(LowRank(Dense(torch.ones(8, 2)), Dense(torch.ones(2, 8))))
        32
    """
    if isinstance(value, LowRank):
        return kept(value.left) + kept(value.right)
    if isinstance(value, Masked | MaskedCodes):
        return value.mask.kept
    if isinstance(value, Sum | Stacked):
        return sum(kept(part) for part in value.parts)
    if isinstance(value, Transformed):
        return kept(value.inner)
    return value.numel


def products(value: CompressedTensor) -> int:
    """MACs for each input vector (or position of a convolution) with a compressed weight.

    Those of the format, whether or not today's kernel skips what it could: a masked weight costs
    what it keeps; factors cost both, or the dense product where that is less.
    """
    if isinstance(value, LowRank):
        return min(products(value.left) + products(value.right), value.numel)
    if isinstance(value, Sum):
        return sum(products(part) for part in value.parts)
    if isinstance(value, Transformed):
        return products(value.inner) + transform_products(value.transform)
    return kept(value)


def transform_products(transform: InputTransform | None) -> int:
    """MACs for each vector of an input transform.

    Matrices in full, the additions of a Hadamard transform as if they were MACs; scales, signs and
    permutations are elementwise and free.
    """
    if isinstance(transform, BlockDiagonal):
        return transform.width * transform.matrix.shape[-1]
    if isinstance(transform, Hadamard):
        return transform.width * (transform.block.bit_length() - 1)
    if isinstance(transform, Chain):
        return sum(transform_products(part) for part in transform.parts)
    return 0


def parameters_of(module: nn.Module) -> tuple[int, int]:
    """A module's own parameters, without those below it: (kept, dense)."""
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if not isinstance(module, CompressedModule):
        return own, own
    values = module.values.values()
    return own + sum(map(kept, values)), own + sum(value.numel for value in values)


def unknown_products(transform: InputTransform | None) -> tuple[str, ...]:
    """The kinds of transforms whose products are not known."""
    free = ("channel scale", "permutation")
    if isinstance(transform, Chain):
        return tuple(name for part in transform.parts for name in unknown_products(part))
    if transform is None or isinstance(transform, BlockDiagonal | Hadamard):
        return ()
    return () if transform.kind in free else (f"the transform {transform.kind!r}",)
