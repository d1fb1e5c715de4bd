import pytest
import torch

from laconic.factorize._factors import best_factors, low_rank, rank_for, saves
from tests.prune.layers import layer


@pytest.mark.parametrize("shape", [(64, 64), (7, 13), (1, 40), (40, 1), (704, 256)])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_ranks_keep_at_most_their_share(shape, keep):
    m, n = shape
    rank = rank_for(m, n, keep)
    assert rank == 1 or rank * (m + n) <= keep * m * n < (rank + 1) * (m + n)
    assert rank >= 1 and saves(m, n, rank) == (rank * (m + n) < m * n)


def test_no_factors_of_that_rank_lose_less():
    weight, x = layer(rows=20, columns=30)
    moment = (x.T @ x / len(x)).double()
    a, b = best_factors(weight, moment, 5, ridge=0.0)
    y = weight.double() @ x.double().T
    ours = (y - a @ b @ x.double().T).norm()
    tail = torch.linalg.svdvals(y)[5:].norm()  # Eckart and Young
    assert float(ours) == pytest.approx(float(tail), rel=1e-6)
    plain = torch.matmul(*best_factors(weight, None, 5))
    assert ours < (y - plain @ x.double().T).norm()
    assert torch.allclose(a.T @ a, torch.eye(5, dtype=torch.float64), atol=1e-10)


def test_without_a_moment_it_is_the_svd_of_the_weight():
    weight = torch.randn(12, 8)
    a, b = best_factors(weight, None, 3)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    assert torch.allclose(a @ b, u[:, :3] * s[:3] @ vh[:3], atol=1e-8)
    identity = torch.matmul(*best_factors(weight, torch.eye(8), 3))
    assert torch.allclose(a @ b, identity, atol=1e-8)


def test_directions_without_inputs_stay_orthonormal():
    weight, x = layer(rows=20, columns=30, positions=2)
    a, b = best_factors(weight, (x.T @ x).double(), 8)
    assert torch.allclose(a.T @ a, torch.eye(8, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(
        a @ b @ x[0].double(), weight.double() @ x[0].double(), rtol=1e-3, atol=1e-3
    )


def test_the_tensor_has_the_shape_and_dtype_of_the_weight():
    weight = torch.randn(8, 4, 3, 3).bfloat16()
    value = low_rank(weight, *best_factors(weight.flatten(1), None, 8))
    assert (value.shape, value.dtype, value.rank) == (weight.shape, torch.bfloat16, 8)
    assert torch.allclose(value.dense().float(), weight.float(), atol=0.05)
