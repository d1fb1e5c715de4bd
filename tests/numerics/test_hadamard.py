import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import UsageError
from laconic.numerics.hadamard import (
    full_hadamard_transform,
    hadamard_block,
    hadamard_matrix,
    hadamard_transform,
    random_signs,
)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_matrix_is_that_of_sylvester(size):
    ours = hadamard_matrix(size)
    assert torch.allclose(ours * size**0.5, torch.from_numpy(scipy.linalg.hadamard(size)).double())
    assert torch.allclose(ours @ ours, torch.eye(size).double(), atol=1e-14)


@given(st.integers(0, 8), st.integers(1, 7), st.integers(1, 3))
def test_transform_multiplies_each_block_by_the_matrix(power, blocks, rows):
    block = 1 << power
    x = torch.randn(rows, blocks * block, dtype=torch.float64)
    want = (x.reshape(rows, blocks, block) @ hadamard_matrix(block)).reshape(x.shape)
    assert torch.allclose(hadamard_transform(x, block), want, atol=1e-12)


@pytest.mark.parametrize("width", [1, 5, 12, 64, 176, 704])
def test_full_transform_is_orthonormal_symmetric_and_mixes_all(width):
    matrix = full_hadamard_transform(torch.eye(width, dtype=torch.float64))
    assert torch.allclose(matrix, matrix.T, atol=1e-13)
    assert torch.allclose(matrix @ matrix, torch.eye(width).double(), atol=1e-12)
    assert matrix.abs().max() <= (2 / width) ** 0.5 + 1e-12 or width == 1
    assert matrix[0].abs().min() > 0


def test_block_of_a_width():
    assert [hadamard_block(w) for w in (1, 3, 704, 1024)] == [1, 1, 64, 1024]
    x = torch.randn(2, 704)
    assert torch.equal(hadamard_transform(x), hadamard_transform(x, 64))


def test_dtype_is_kept_and_halves_are_summed_in_float32():
    x = torch.full((3, 1024), 100.0, dtype=torch.float16)
    assert hadamard_transform(x)[0, 0].item() == 3200
    assert hadamard_transform(x).dtype == torch.float16
    assert full_hadamard_transform(x.bfloat16()[:, :768]).dtype == torch.bfloat16


def test_gradients_flow():
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hadamard_transform, (x,))
    assert torch.autograd.gradcheck(full_hadamard_transform, (x,))


def test_no_rows():
    assert hadamard_transform(torch.zeros(0, 8)).shape == (0, 8)
    assert full_hadamard_transform(torch.zeros(0, 12)).shape == (0, 12)


def test_signs_are_fixed_by_the_seed():
    assert random_signs(5, 1).tolist() == random_signs(9, 1)[:5].tolist()
    assert not torch.equal(random_signs(64, 1), random_signs(64, 2))
    signs = random_signs(4096, (1 << 64) - 1)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean().item()) < 0.05


def test_the_same_bits_on_any_number_of_threads(same_bits):
    x = torch.randn(300, 704)
    same_bits(lambda: hadamard_transform(x))
    same_bits(lambda: full_hadamard_transform(x))


def test_bad_input():
    x = torch.zeros(2, 12)
    for bad in (
        lambda: hadamard_transform(x, 3),
        lambda: hadamard_transform(x, 8),
        lambda: hadamard_transform(x, 0),
        lambda: hadamard_transform(torch.tensor(1.0)),
        lambda: full_hadamard_transform(torch.zeros(3, 0)),
        lambda: hadamard_matrix(6),
        lambda: hadamard_block(0),
        lambda: random_signs(0, 1),
        lambda: random_signs(4, -1),
    ):
        with pytest.raises(UsageError):
            bad()
