"""Differences from a base: lossless for any bits, small for near ones, and damage is seen."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.coding import deltas
from laconic.coding.blocks import compress
from laconic.coding.deltas import compress_delta, decompress_delta, estimate
from laconic.coding.planes import LAYOUTS
from laconic.errors import CorruptFile, UsageError

DTYPES = sorted(LAYOUTS)
NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I16": np.int16, "I64": np.int64}


def near(size, dtype, change, seed=0):
    """(base, what an update of `change` made of it)."""
    generator = np.random.default_rng(seed)
    base = generator.normal(0, 0.02, size)
    after = base + generator.normal(0, change, size)
    if dtype == "BF16":
        return tuple(
            (x.astype(np.float32).view(np.uint32) >> 16).astype("u2") for x in (base, after)
        )
    return base.astype(NUMPY[dtype]), after.astype(NUMPY[dtype])


def there_and_back(data, base, dtype):
    blob = compress_delta(data, base, dtype)
    assert decompress_delta(blob, base).tobytes() == data.tobytes()
    return len(blob)


@given(st.binary(max_size=300), st.integers(0, 2**32), st.sampled_from(DTYPES))
def test_any_bits_of_any_dtype(data, seed, dtype):
    base = np.random.default_rng(seed).integers(0, 256, len(data), dtype=np.uint8)
    there_and_back(np.frombuffer(data, np.uint8), base, dtype)


@given(st.sampled_from(DTYPES), st.integers(0, 200), st.integers(0, 2**32))
def test_few_bits_changed(dtype, changed, seed):
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, 3001, dtype=np.uint8)
    data = base.copy()
    data[generator.integers(0, data.size, changed)] ^= 1 << int(generator.integers(8))
    there_and_back(data, base, dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pair_of_signs_and_exponents(dtype):
    """Zeros of both signs, subnormals, infinities, NaN with payloads."""
    values = np.unique(np.arange(0, 1 << 16, 97, dtype=np.uint16))
    base, data = (part.ravel() for part in np.meshgrid(values, values))
    there_and_back(data, base, dtype)


@pytest.mark.parametrize("dtype", ["F32", "F64", "I64", "U32", "F8_E4M3", "I8"])
def test_extremes(dtype):
    item = LAYOUTS[dtype].itemsize
    bits = [
        0,
        1,
        (1 << 8 * item - 1) - 1,
        1 << 8 * item - 1,
        (1 << 8 * item - 1) + 1,
        (1 << 8 * item) - 1,
    ]
    values = np.array(bits, f"<u{item}")
    base, data = (part.ravel() for part in np.meshgrid(values, values))
    there_and_back(data, base, dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("change", [1e-6, 1e-5, 1e-4])
def test_updates_take_less_than_the_values(dtype, change):
    base, data = near(100_000, dtype, change)
    size = there_and_back(data, base, dtype)
    alone, exclusive = (
        len(compress(x, dtype, engine="rans"))
        for x in (data, (data.view(f"u{data.itemsize}") ^ base.view(f"u{data.itemsize}")))
    )
    assert size < 0.9 * alone
    assert size < 0.99 * exclusive
    assert size == pytest.approx(estimate(data, base, dtype), rel=0.02, abs=1500)


def test_the_same_again_takes_next_to_nothing():
    base, _ = near(1 << 20, "BF16", 0)
    assert there_and_back(base, base, "BF16") < 300


def test_contexts_are_worth_their_tables():
    base, data = near(1 << 18, "BF16", 1e-4)
    size = there_and_back(data, base, "BF16")
    scale = there_and_back(data, np.full_like(base, base[0]), "BF16")  # one context
    assert size < 0.5 * scale


def test_sharing_is_the_cheapest(monkeypatch):
    """Against every way to cut five contexts into runs."""
    generator = np.random.default_rng(1)
    counts = np.zeros((256, 256), np.int64)
    used = [3, 50, 51, 120, 200]
    for context in used:
        counts[context, :6] = generator.integers(0, 300, 6)
    groups, bits = deltas._share(counts)

    def cost(cut):
        total, first = 0.0, 0
        for stop in [*[i for i in range(1, 5) if cut >> (i - 1) & 1], 5]:
            joint = counts[used[first:stop]].sum(axis=0)
            shares = joint[joint > 0] / joint.sum()
            total += -(joint[joint > 0] * np.log2(shares)).sum() + deltas.SYMBOL_BITS * len(shares)
            first = stop
        return total

    assert bits == pytest.approx(min(cost(cut) for cut in range(16)))
    assert (np.diff(groups.astype(int)) >= 0).all()
    assert set(groups[used].tolist()) == set(groups.tolist())


def test_bases_that_do_not_fit():
    base, data = near(500, "BF16", 1e-4)
    with pytest.raises(UsageError, match="a base of 1000 bytes is needed, found 998"):
        compress_delta(data, base[1:], "BF16")
    blob = compress_delta(data, base, "BF16")
    with pytest.raises(CorruptFile, match="1000 bytes, its base has 998"):
        decompress_delta(blob, base[1:])
    with pytest.raises(CorruptFile):
        decompress_delta(blob, data)


@pytest.mark.parametrize("dtype", ["BF16", "F64", "U8"])
def test_damage(dtype):
    base, data = near(3000, "BF16", 1e-4)
    blob = compress_delta(data, base, dtype)
    for position in range(0, len(blob), max(1, len(blob) // 600)):
        altered = blob.copy()
        altered[position] ^= 1 << position % 8
        with contextlib.suppress(
            CorruptFile
        ):  # that a table begins at a context without use is none
            assert decompress_delta(altered, base).tobytes() == data.tobytes()
        with pytest.raises(CorruptFile):
            decompress_delta(blob[:position], base)


@given(st.binary(max_size=80), st.integers(0, 40))
def test_noise_is_refused(noise, size):
    with pytest.raises(CorruptFile):
        decompress_delta(noise, bytes(size))
