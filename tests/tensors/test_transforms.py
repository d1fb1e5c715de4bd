import pytest
import torch
from scipy.linalg import hadamard

from laconic.errors import BadWeights, CorruptFile, UsageError
from laconic.tensors import BlockDiagonal, Chain, ChannelScale, Hadamard, Permutation, Rotation
from laconic.tensors.compressed import State, from_state


def test_divides_channels_in_the_dtype_of_the_input():
    scale = torch.tensor([1.0, 2.0, 4.0])
    x = torch.full((2, 5, 3), 8.0)
    y = ChannelScale(scale)(x)
    assert torch.equal(y[0, 0], torch.tensor([8.0, 4.0, 2.0]))
    assert ChannelScale(scale)(x.bfloat16()).dtype == torch.bfloat16


def test_undoes_what_was_done_to_the_weight():
    scale, weight, x = torch.rand(7) + 0.5, torch.randn(4, 7), torch.randn(3, 7)
    expected = x @ weight.T
    assert torch.allclose(ChannelScale(scale)(x) @ (weight * scale).T, expected, atol=1e-5)


def test_state_and_tensors():
    transform = ChannelScale(torch.rand(7))
    assert torch.equal(from_state(transform.state()).scale, transform.scale)
    assert transform.resident_bytes == 28
    assert transform.to("meta").scale.device.type == "meta"


def test_hadamard_is_scipys():
    signs = torch.tensor([1, -1, 1, 1, -1, 1, 1, -1], dtype=torch.int8)
    matrix = torch.from_numpy(hadamard(4)).float() / 2
    x = torch.randn(3, 8)
    expected = ((x * signs).reshape(3, 2, 4) @ matrix).reshape(3, 8)
    assert torch.allclose(Hadamard(signs, 4)(x), expected, atol=1e-6)


def test_hadamard_of_one_seed():
    first, again, other = (Hadamard.random(704, seed) for seed in (3, 3, 4))
    assert torch.equal(first.signs, again.signs) and not torch.equal(first.signs, other.signs)
    assert first.block == 64
    assert first.state().arrays["negative"].numel() == 88  # a bit for each sign


@pytest.mark.parametrize(
    "kind, arguments, match", [
        (ChannelScale, (torch.ones(2, 2),), "scale must be"),
        (Hadamard, (torch.ones(4),), "int8"),
        (Hadamard, (torch.ones(2, 2, dtype=torch.int8), 2), "int8"),
        (Hadamard, (torch.ones(6, dtype=torch.int8), 4), "power of two"),
        (Hadamard, (torch.ones(6, dtype=torch.int8), 3), "power of two"),
        (Hadamard, (torch.ones(6, dtype=torch.int8), 0), "block must be"),
        (BlockDiagonal, (torch.ones(3, 3),), "must be"),
        (BlockDiagonal, (torch.ones(1, 2, 3),), "must be"),
        (Permutation, (torch.arange(3),), "int32"),
        (Permutation, (torch.zeros(2, 2, dtype=torch.int32),), "int32"),
        (Chain, ((ChannelScale(torch.ones(2)), ChannelScale(torch.ones(3))),), "does not hold"),
        (Chain, ((),), "does not hold"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(kind, arguments, match):
    if kind is Hadamard and len(arguments) == 1:
        arguments = (*arguments, 2)
    with pytest.raises(UsageError, match=match):
        kind(*arguments)


def test_blocks_are_applied_one_by_one():
    matrix, x = torch.randn(3, 4, 4), torch.randn(2, 12)
    whole = torch.block_diag(*matrix)
    assert torch.allclose(BlockDiagonal(matrix)(x), x @ whole.T, atol=1e-5)


def test_a_block_without_inverse():
    with pytest.raises(BadWeights, match="cannot be inverted"):
        BlockDiagonal(torch.ones(1, 3, 3)).fold(torch.randn(2, 3))


def test_a_rotation_folds_by_its_transpose():
    matrix = torch.linalg.qr(torch.randn(2, 8, 8))[0]
    weight = torch.randn(5, 16)
    folded = Rotation(matrix).fold(weight)
    assert torch.allclose(folded, weight @ torch.block_diag(*matrix).T, atol=1e-5)
    assert torch.allclose(folded, BlockDiagonal(matrix).fold(weight), atol=1e-4)


def test_a_chain_applies_the_first_first():
    order = Permutation(torch.tensor([2, 0, 1], dtype=torch.int32))
    scale = ChannelScale(torch.tensor([1.0, 2.0, 4.0]))
    x = torch.tensor([8.0, 16.0, 32.0])
    assert Chain((order, scale))(x).tolist() == [32, 4, 4]
    assert Chain((scale, order))(x).tolist() == [8, 8, 8]


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1, 3], [-1, 0, 1]])
def test_orders_that_name_a_channel_twice(order):
    state = Permutation(torch.arange(3, dtype=torch.int32)).state()
    false = {"order": torch.tensor(order, dtype=torch.int32)}
    with pytest.raises(CorruptFile, match="every channel once"):
        from_state(State(state.kind, state.meta, false))
