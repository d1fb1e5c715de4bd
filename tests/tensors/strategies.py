"""Hypothesis strategies: weights, quantizers and compressed tensors of every shape."""

import torch
from hypothesis import strategies as st

from laconic.tensors import CompressedTensor, Dense, IntQuantizer, Stacked

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
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


@st.composite
def stacks(draw) -> CompressedTensor:
    """Slices of one or two parts, quantized or dense."""
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
    quantizer = draw(quantizers)
    return Stacked(tuple(quantizer.quantize(part) for part in parts), per_slice)


compressed_tensors = st.one_of(grouped, stacks(), weights().map(Dense))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one dtype and shape and agree in every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)
