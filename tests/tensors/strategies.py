"""Hypothesis strategies: weights, quantizers and compressed tensors of every shape and kind."""

import torch
from hypothesis import strategies as st

from laconic.tensors import (
    Additive,
    Binary,
    Bitmask,
    BlockDiagonal,
    Chain,
    ChannelMask,
    ChannelScale,
    Codebook,
    CompressedTensor,
    Dense,
    FloatQuantizer,
    GroupedFloat,
    Hadamard,
    InputTransform,
    IntQuantizer,
    LowRank,
    Mask,
    Masked,
    MaskedCodes,
    NofM,
    Permutation,
    Rotation,
    ShiftQuantizer,
    Stacked,
    Sum,
    Transformed,
)
from laconic.tensors.deadzone import DeadZone
from laconic.tensors.floats import FORMATS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

shapes = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.tuples(st.integers(0, 9), st.integers(0, 20)),
)
quantizers = st.builds(
    IntQuantizer,
    bits=st.integers(2, 8),
    group=st.one_of(st.integers(1, 14), st.sampled_from(["row", "tensor"])),
    symmetric=st.booleans(),
    range=st.sampled_from(["minmax", "mse"]),
)


@st.composite
def weights(draw, shapes=shapes, dtypes=FLOATS) -> torch.Tensor:
    """Normal values with a few outliers and zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x = torch.randn(draw(shapes), generator=generator)
    x = x * (1 + 9 * (torch.rand(x.shape, generator=generator) < 0.05))
    x = x * (torch.rand(x.shape, generator=generator) < 0.9)
    return x.to(draw(st.sampled_from(dtypes)))


@st.composite
def raw_tensors(draw, dtypes) -> torch.Tensor:
    """Any bits at all, NaN and infinity included."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(shapes)
    count = torch.Size(shape).numel() * dtype.itemsize
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    top = 2 if dtype == torch.bool else draw(st.sampled_from([1, 3, 256]))
    raw = torch.randint(0, top, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


grouped = st.builds(IntQuantizer.quantize, quantizers, weights())
shift_quantizers = st.builds(
    ShiftQuantizer, bits=st.integers(2, 16), rows=st.integers(1, 8), columns=st.integers(1, 14),
    search=st.integers(1, 4), middle=st.booleans(),
)  # fmt: skip


@st.composite
def stacks(draw) -> CompressedTensor:
    """Slices of one or two parts, quantized, dense, or of low rank."""
    slices, per_slice = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    columns, dtype = draw(st.integers(0, 9)), draw(st.sampled_from(FLOATS))
    rows = [draw(st.integers(0, 5)) for _ in range(per_slice)]
    parts = [
        draw(weights(shapes=st.just((count, columns)), dtypes=(dtype,)))
        for _ in range(slices)
        for count in rows
    ]
    if draw(st.booleans()):
        return Stacked(tuple(Dense(part) for part in parts), per_slice)
    if draw(st.booleans()):
        factors = [
            LowRank(Dense(part[:, :1]), Dense(part.new_ones(part[:, :1].shape[1], columns)))
            for part in parts
        ]
        return Stacked(tuple(factors), per_slice)
    quantizer = draw(quantizers)
    return Stacked(tuple(quantizer.quantize(part) for part in parts), per_slice)


compressed_tensors = st.one_of(grouped, stacks(), weights().map(Dense))

dtypes = st.sampled_from(FLOATS)
generators = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
matrix_shapes = st.tuples(st.integers(1, 9), st.integers(1, 20))
wide_shapes = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)
weight_shapes = st.one_of(matrix_shapes, wide_shapes)
channel_shapes = st.lists(st.integers(0, 6), min_size=2, max_size=4)
plain_floats = [name for name, form in FORMATS.items() if form.block is None]
float_quantizers = st.one_of(
    st.builds(
        FloatQuantizer, st.sampled_from(plain_floats),
        st.one_of(st.none(), st.integers(1, 14), st.just("tensor")),
    ),
    st.builds(FloatQuantizer, st.sampled_from(sorted(set(FORMATS) - set(plain_floats)))),
)  # fmt: skip
grouped_floats: st.SearchStrategy[GroupedFloat] = st.builds(
    FloatQuantizer.quantize, float_quantizers, weights()
)


def _codes(shape, bits, generator, dtype=torch.int32):
    return torch.randint(0, 2**bits, shape, generator=generator).to(dtype)


def _rows_and_columns(shape):
    rows = shape[0] if shape else 1
    return rows, (torch.Size(shape).numel() // rows if rows else 0)


@st.composite
def codebooks(draw, shapes=shapes) -> Codebook:
    """Any geometry, entries of any dtype, with and without scales."""
    shape, generator = draw(shapes), draw(generators)
    rows, columns = _rows_and_columns(shape)
    dim = draw(st.sampled_from((1, 2, 4, 8)))
    count = draw(st.sampled_from((1, 2, 3, 16, 200, 256, 300)))
    vectors = -(-columns // dim)
    tall = draw(st.one_of(st.none(), st.integers(1, 5)))
    wide = draw(st.one_of(st.none(), st.integers(1, 3).map(lambda n: n * dim)))
    down = -(-rows // (tall or max(1, rows)))
    across = -(-vectors * dim // (wide or max(1, vectors) * dim))
    entries = torch.randn(down * across, count, dim, generator=generator)
    entry_scale = None
    if draw(st.booleans()):
        entries = (40 * entries).clamp(-127, 127).to(torch.int8)
        entry_scale = torch.rand(down * across, generator=generator).half()
    else:
        entries = entries.to(draw(dtypes))
    block, scale = draw(st.integers(0, 6)), None
    if block:
        scale = Dense(torch.rand(rows, -(-columns // block), generator=generator).bfloat16())
    codes = torch.randint(0, count, (rows, vectors), generator=generator)
    return Codebook.from_codes(
        codes, entries, shape=torch.Size(shape), dtype=draw(dtypes), rows_per_group=tall,
        columns_per_group=wide, entry_scale=entry_scale, scale=scale, scale_block=block,
    )  # fmt: skip


@st.composite
def additives(draw) -> Additive:
    """One to three codebooks of 1 to 9 bits."""
    shape, generator = draw(shapes), draw(generators)
    rows, columns = _rows_and_columns(shape)
    count, bits, length = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 8))
    codes = _codes((rows, -(-columns // length), count), bits, generator)
    codebooks = torch.randn(count, 2**bits, length, generator=generator).to(draw(dtypes))
    scale = torch.rand(rows, generator=generator).to(draw(dtypes))
    return Additive.from_codes(codes, codebooks, scale, shape=torch.Size(shape), dtype=draw(dtypes))


@st.composite
def dead_zones(draw) -> DeadZone:
    """One grid, grids of rows, or of groups; steps from fine to far too coarse."""
    weight = draw(weights(shapes=shapes))
    rows = weight.shape[0] if weight.ndim else 1
    columns = weight.numel() // rows if rows else 0
    group = draw(st.one_of(st.none(), st.integers(1, 12)))
    size = (1, 1) if draw(st.booleans()) else (rows, -(-columns // (group or max(1, columns))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from((5e-3, 0.1, 1.0, 50.0)))
    edge, step = (scale * (0.5 + torch.rand(size, generator=generator)) for _ in range(2))
    return DeadZone.of(weight, edge, step, group=group)


@st.composite
def binaries(draw) -> Binary:
    """One to eight planes, per row or in groups, with and without offset."""
    shape, generator = draw(shapes), draw(generators)
    rows, columns = _rows_and_columns(shape)
    bits, group = draw(st.integers(1, 8)), draw(st.sampled_from((8, 16, max(1, columns))))
    groups = -(-columns // group)
    alpha = torch.rand(bits, rows, groups, generator=generator).to(draw(dtypes))
    offset = torch.randn(rows, groups, generator=generator).bfloat16()
    codes = _codes(shape, bits, generator, torch.uint8)
    return Binary.from_codes(
        codes, alpha, offset if draw(st.booleans()) else None, group=group, dtype=draw(dtypes)
    )


@st.composite
def bitmasks(draw, shapes=shapes) -> Bitmask:
    """Any share of any shape."""
    shape, generator = draw(shapes), draw(generators)
    return Bitmask.of(torch.rand(shape, generator=generator) < draw(st.floats(0, 1)))


@st.composite
def runs(draw, shapes=shapes) -> NofM:
    """Any n of m; a ragged last run keeps as many as it can."""
    shape, generator = draw(shapes), draw(generators)
    rows, columns = _rows_and_columns(shape)
    m = draw(st.integers(1, 9))
    n = draw(st.integers(1, m))
    keep = torch.zeros(rows, columns, dtype=torch.bool)
    for start in range(0, columns, m):
        width = min(m, columns - start)
        order = torch.rand(rows, width, generator=generator).argsort(1)[:, : min(n, width)]
        keep[:, start : start + width].scatter_(1, order, True)
    return NofM.of(keep.reshape(shape), n, m)


@st.composite
def channel_masks(draw, shapes=channel_shapes) -> ChannelMask:
    """Rows, columns, or both; none of them, too."""
    shape, generator = tuple(draw(shapes)), draw(generators)
    rows, columns = (torch.rand(n, generator=generator) < draw(st.floats(0, 1)) for n in shape[:2])
    return ChannelMask.of(
        shape, rows=rows if draw(st.booleans()) else None,
        columns=columns if draw(st.booleans()) else None,
    )  # fmt: skip


MASKS: dict[str, st.SearchStrategy[Mask]] = {
    "bitmask": bitmasks(),
    "n of m": runs(),
    "channel mask": channel_masks(),
}


@st.composite
def masked(draw) -> Masked:
    """Kept values dense, quantized as they are, or in one row."""
    mask, generator = draw(st.one_of(*MASKS.values())), draw(generators)
    weight = torch.randn(mask.shape, generator=generator).to(draw(dtypes))
    compress = draw(st.sampled_from([Dense, draw(quantizers).quantize]))
    value = Masked.of(weight, mask, compress)
    if draw(st.booleans()):
        value = Masked(compress(mask.gather(weight).reshape(1, -1)), mask)
    return value


@st.composite
def masked_codes(draw) -> MaskedCodes:
    """Over every format that has a code for each weight."""
    whole = draw(
        st.one_of(grouped, grouped_floats, binaries(), codebooks().filter(lambda c: c.dim == 1))
    )
    own = st.just(tuple(whole.shape))
    kinds = [bitmasks(own), runs(own)] + [channel_masks(own)] * (len(whole.shape) >= 2)
    return MaskedCodes.of(whole, draw(st.one_of(kinds)))


@st.composite
def low_ranks(draw) -> LowRank:
    """Dense or quantized factors of rank 0 to 5, of matrices and convolutions."""
    rows, rank, channels = draw(st.integers(1, 9)), draw(st.integers(0, 5)), draw(st.integers(1, 9))
    kernel = draw(st.sampled_from([(), (3,), (2, 3)]))
    dtype, generator = draw(dtypes), draw(generators)
    columns = channels * torch.Size(kernel).numel()
    left = torch.randn(rows, rank, generator=generator).to(dtype)
    right = torch.randn(rank, columns, generator=generator).to(dtype)
    compress = draw(st.sampled_from([Dense, draw(quantizers).quantize]))
    return LowRank(compress(left), compress(right), kernel)


@st.composite
def sums(draw, shapes=weight_shapes) -> Sum:
    """Of one to three parts of unlike kinds."""
    shape = draw(shapes)
    same = st.just(shape)
    part = st.one_of(
        weights(same).map(Dense), st.builds(IntQuantizer.quantize, quantizers, weights(same)),
        codebooks(same), bitmasks(same).map(_thinned),
    )  # fmt: skip
    return Sum(tuple(draw(st.lists(part, min_size=1, max_size=3))))


def _thinned(mask: Mask) -> Masked:
    return Masked.of(torch.ones(mask.shape), mask)


def _orthonormal(count, size, generator):
    noise = torch.randn(count, size, size, generator=generator)
    return torch.linalg.qr(noise)[0]


@st.composite
def channel_scales(draw, width) -> ChannelScale:
    """Positive scales."""
    return ChannelScale(torch.rand(width, generator=draw(generators)) + 0.5)


@st.composite
def hadamards(draw, width) -> Hadamard:
    """Blocks of any size that fits."""
    block = draw(st.sampled_from([2**i for i in range(5) if width % 2**i == 0]))
    return Hadamard.random(width, draw(st.integers(0, 2**64 - 1)), block=block)


@st.composite
def block_diagonals(draw, width) -> BlockDiagonal:
    """Blocks of any size that fits, not near singular."""
    size = draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    generator = draw(generators)
    rotated = _orthonormal(width // size, size, generator)
    return BlockDiagonal(rotated * (torch.rand(size, generator=generator) + 0.5))


@st.composite
def rotations(draw, width) -> Rotation:
    """Orthonormal blocks of any size that fits."""
    size = draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    return Rotation(_orthonormal(width // size, size, draw(generators)))


@st.composite
def permutations(draw, width) -> Permutation:
    """Any order."""
    return Permutation(torch.randperm(width, generator=draw(generators)).int())


SIMPLE_TRANSFORMS = {
    "channel scale": channel_scales,
    "hadamard": hadamards,
    "block diagonal": block_diagonals,
    "rotation": rotations,
    "permutation": permutations,
}


@st.composite
def chains(draw, width) -> Chain:
    """One to three transforms, chains among them."""
    simple = st.one_of(*(kind(width) for kind in SIMPLE_TRANSFORMS.values()))
    nested = st.one_of(simple, simple.map(lambda part: Chain((part, part))))
    return Chain(tuple(draw(st.lists(nested, min_size=1, max_size=3))))


#: By kind, a function of the width.
TRANSFORMS = SIMPLE_TRANSFORMS | {"chain": chains}


def transforms(width: int) -> st.SearchStrategy[InputTransform]:
    """Any transform of `width` channels."""
    return st.one_of(*(kind(width) for kind in TRANSFORMS.values()))


@st.composite
def transformed(draw) -> Transformed:
    """Any transform before a dense, quantized, or summed weight."""
    shape = draw(weight_shapes)
    same = st.just(shape)
    inner = st.one_of(
        weights(same).map(Dense), st.builds(IntQuantizer.quantize, quantizers, weights(same)),
        sums(same),
    )  # fmt: skip
    return Transformed(draw(inner), draw(transforms(shape[1])))


#: A strategy for each kind of compressed tensor; `tests/contracts/test_tensors.py` runs over them.
KINDS: dict[str, st.SearchStrategy[CompressedTensor]] = {
    "dense": weights().map(Dense),
    "grouped": grouped,
    "grouped float": grouped_floats,
    "codebook": codebooks(),
    "additive": additives(),
    "binary": binaries(),
    "dead zone": dead_zones(),
    "masked": masked(),
    "masked codes": masked_codes(),
    "low rank": low_ranks(),
    "sum": sums(),
    "transformed": transformed(),
    "stacked": stacks(),
    "shift-block": st.builds(ShiftQuantizer.quantize, shift_quantizers, weights()),
}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one dtype and shape and agree in every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)
