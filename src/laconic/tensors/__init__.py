"""What a compressed weight is: quantizers, tensors, the modules that compute with them, their bytes."""

from laconic.tensors.additive import Additive
from laconic.tensors.binary import Binary
from laconic.tensors.binary_quantizer import BinaryQuantizer
from laconic.tensors.codebook import Codebook
from laconic.tensors.codebook_quantizer import CodebookQuantizer
from laconic.tensors.combined import Sum, Transformed
from laconic.tensors.compressed import CompressedTensor, InputTransform
from laconic.tensors.deadzone import DeadZone
from laconic.tensors.dense import Dense
from laconic.tensors.floats import FloatQuantizer
from laconic.tensors.grouped import Grouped
from laconic.tensors.grouped_float import GroupedFloat
from laconic.tensors.integer import IntQuantizer
from laconic.tensors.kv import KVQuantizer, QuantizedKV
from laconic.tensors.lowrank import LowRank
from laconic.tensors.masked import Masked, MaskedCodes
from laconic.tensors.masks import Bitmask, ChannelMask, Mask
from laconic.tensors.nofm import NofM
from laconic.tensors.quantizer import Quantizer
from laconic.tensors.shift_quantizer import ShiftQuantizer
from laconic.tensors.shifted import Shifted
from laconic.tensors.stacked import Stacked
from laconic.tensors.static import StaticIntQuantizer
from laconic.tensors.transforms import (
    BlockDiagonal,
    Chain,
    ChannelScale,
    Hadamard,
    Permutation,
    Rotation,
)

__all__ = [
    "Additive",
    "Binary",
    "BinaryQuantizer",
    "Bitmask",
    "BlockDiagonal",
    "Chain",
    "ChannelMask",
    "ChannelScale",
    "Codebook",
    "CodebookQuantizer",
    "CompressedTensor",
    "DeadZone",
    "Dense",
    "FloatQuantizer",
    "Grouped",
    "GroupedFloat",
    "Hadamard",
    "InputTransform",
    "IntQuantizer",
    "KVQuantizer",
    "LowRank",
    "Mask",
    "Masked",
    "MaskedCodes",
    "NofM",
    "Permutation",
    "QuantizedKV",
    "Quantizer",
    "Rotation",
    "ShiftQuantizer",
    "Shifted",
    "Stacked",
    "StaticIntQuantizer",
    "Sum",
    "Transformed",
]
