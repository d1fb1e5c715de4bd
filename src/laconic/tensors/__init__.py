"""What a compressed weight is: quantizers, tensors, the modules that compute with them, their bytes."""

from laconic.tensors.compressed import CompressedTensor, InputTransform
from laconic.tensors.dense import Dense
from laconic.tensors.grouped import Grouped
from laconic.tensors.integer import IntQuantizer
from laconic.tensors.quantizer import Quantizer
from laconic.tensors.stacked import Stacked

__all__ = [
    "CompressedTensor",
    "Dense",
    "Grouped",
    "InputTransform",
    "IntQuantizer",
    "Quantizer",
    "Stacked",
]
