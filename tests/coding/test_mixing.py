"""Planes in the context of the plane before: exact, smaller than any order-0 code where planes are alike."""

import lzma

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from laconic.coding import mixing
from laconic.coding.mixing import decode_plane, encode_plane
from laconic.errors import CorruptFile, UsageError


def alike(height=256, width=300, seed=0):
    """Two planes of sparse symbols whose rows and columns move alike."""
    generator = np.random.default_rng(seed)
    scale = np.exp(generator.normal(0, 0.7, (height, 1)) + generator.normal(0, 0.7, (1, width)))
    planes = []
    for _ in range(2):
        moved = generator.normal(size=(height, width)) * scale
        symbols = np.clip(np.round(1.2 * moved) + 8, 1, 15)
        planes.append(np.where(np.abs(moved) < 1.8, 0, symbols).astype(np.uint8))
    return planes


def order_0(plane):
    counts = np.bincount(plane.ravel(), minlength=16)
    counts = counts[counts > 0]
    return -(counts * np.log2(counts / plane.size)).sum() / 8


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32), st.integers(1, 16))
def test_round_trip(height, width, seed, symbols):
    generator = np.random.default_rng(seed)
    plane, before = generator.integers(0, symbols, (2, height, width), dtype=np.uint8)
    assert np.array_equal(decode_plane(encode_plane(plane, before), before), plane)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (70, 71)])
def test_shapes(shape):
    plane, before = (p.ravel()[: shape[0] * shape[1]].reshape(shape) for p in alike())
    assert np.array_equal(decode_plane(encode_plane(plane, before), before), plane)


def test_what_the_plane_before_knows_is_used():
    before, plane = alike()
    size = len(encode_plane(plane, before))
    packed = (plane.ravel()[::2] << 4 | plane.ravel()[1::2]).tobytes()
    assert size < 0.95 * order_0(plane)
    assert size < 0.95 * min(len(zstandard.compress(packed, 19)), len(lzma.compress(packed)))
    assert size < len(encode_plane(plane, np.zeros_like(plane)))


def test_noise_is_hardly_longer():
    plane = np.random.default_rng(0).integers(0, 16, (256, 256), dtype=np.uint8)
    assert len(encode_plane(plane, np.zeros_like(plane))) < 1.01 * plane.size / 2 + 64


def test_a_certain_plane_takes_next_to_nothing():
    plane = np.full((300, 300), 7, np.uint8)
    assert len(encode_plane(plane, plane)) < 100


def test_shares_are_always_shares(monkeypatch):
    """After any symbols the distributions are proper ones."""
    tables, visits, shares, mixed = mixing._fresh.py_func()
    generator = np.random.default_rng(0)
    for _ in range(3000):
        found = np.array([generator.integers(size) for size in mixing.SIZES])
        own = int(generator.integers(16))
        mixing._mix.py_func(tables, shares, found, own, mixed)
        assert mixed[0] == 0
        assert mixed[16] == mixing.ONE
        assert (np.diff(mixed) >= mixing.FLOOR).all()
        symbol = int(generator.integers(2)) * int(generator.integers(16))
        mixing._learn.py_func(tables, visits, shares, found, own, mixed, symbol)
        assert shares[own].sum() == mixing.ONE
        assert (shares > 0).all()
    assert (np.diff(tables, axis=2) >= 0).all()


@pytest.mark.parametrize(
    ("plane", "before"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))), (np.zeros(4), np.zeros(4)),
        (np.full((2, 2), 16), np.zeros((2, 2))), (np.zeros((2, 2)), np.full((2, 2), 16)),
    ],
)  # fmt: skip
def test_planes_that_cannot_be(plane, before):
    with pytest.raises(UsageError):
        encode_plane(plane.astype(np.uint8), before.astype(np.uint8))


def test_damage():
    before, plane = alike(40, 50)
    blob = encode_plane(plane, before)
    for length in range(0, len(blob), 7):
        with pytest.raises(CorruptFile):
            decode_plane(blob[:length], before)
    seen = 0
    for position in range(0, len(blob), 5):
        altered = bytearray(blob)
        altered[position] ^= 1 << position % 8
        try:
            decode_plane(bytes(altered), before)
        except CorruptFile:
            seen += 1
    assert seen > 0.9 * len(blob) / 5
    with pytest.raises(CorruptFile, match="not of"):
        decode_plane(blob, before[1:])
    with pytest.raises(CorruptFile):
        decode_plane(blob + bytes(4), before)


@given(st.binary(max_size=60))
def test_noise_is_refused(noise):
    before = np.zeros((5, 7), np.uint8)
    try:
        assert decode_plane(noise, before).max() < 16
    except CorruptFile:
        return
