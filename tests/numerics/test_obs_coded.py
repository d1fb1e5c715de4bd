import pytest
import torch

from laconic.coding.tables import entropy_bits
from laconic.errors import BadWeights, UsageError
from laconic.numerics import obs_coded
from laconic.numerics.cholesky import inverse_upper
from laconic.numerics.obs import sweep_loss
from laconic.numerics.obs_coded import coded_sweep, counted_lengths, expected_lengths
from tests.numerics.layers import layer

FLAT = torch.zeros(256)


def bits(codes):
    return float(entropy_bits(torch.bincount(codes.flatten().long(), minlength=256).numpy()))


def case(rows=150, columns=300):
    weight, h = layer(rows, columns)
    return weight, inverse_upper(h).factor, torch.full((rows,), 0.5 * weight.std())


def test_without_a_price_it_rounds_to_the_nearest():
    weight, step = torch.randn(5, 9), torch.rand(5) + 0.1
    found = coded_sweep(weight, torch.eye(9), step, FLAT)
    assert torch.equal(found.codes.int() - 128, (weight / step[:, None]).round().int())
    assert torch.equal(found.values, (found.codes.float() - 128) * step[:, None])


def test_values_and_losses_belong_together():
    weight, upper, step = case()
    found = coded_sweep(weight, upper, step, expected_lengths(2.0))
    assert torch.equal(found.values, (found.codes.float() - 128) * step[:, None])
    assert torch.allclose(found.loss, sweep_loss(weight - found.values, upper), rtol=1e-3)


def test_without_columns_behind_each_weight_is_the_best_of_all_grid_points():
    weight, step, trade = torch.randn(20, 7), torch.full((20,), 0.4), 0.1
    lengths = expected_lengths(1.0)
    found = coded_sweep(weight, torch.eye(7), step, lengths, trade=trade).codes
    q = torch.arange(-127, 128)
    cost = (weight[..., None] / 0.4 - q).square() + trade * lengths[q + 128].float()
    assert torch.equal(found.long() - 128, q[cost.argmin(dim=-1)])


def test_other_devices_agree(monkeypatch):
    weight, upper, step = case()
    once = coded_sweep(weight, upper, step, expected_lengths(2.0))
    monkeypatch.setattr(obs_coded, "_fix_numba", obs_coded._fix_torch)
    again = coded_sweep(weight, upper, step, expected_lengths(2.0))
    assert (once.codes == again.codes).float().mean() > 0.999
    assert torch.allclose(once.loss.sum(), again.loss.sum(), rtol=1e-3)


@pytest.mark.parametrize("other", [False, True])
def test_zeros_are_zeros_and_made_up_for(monkeypatch, other):
    weight, upper, step = case(40, 200)
    keep = torch.rand(weight.shape) < 0.5
    if other:
        monkeypatch.setattr(obs_coded, "_fix_numba", obs_coded._fix_torch)
    found = coded_sweep(weight, upper, step, FLAT, keep=keep)
    assert (found.codes[~keep] == 128).all() and (found.values[~keep] == 0).all()
    assert torch.allclose(found.loss, sweep_loss(weight - found.values, upper), rtol=1e-3)
    rounded = (weight / step[:, None]).round() * step[:, None] * keep
    assert found.loss.sum() < sweep_loss(weight - rounded, upper).sum()


def test_threads_change_nothing():
    weight, upper, step = case()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(coded_sweep(weight, upper, step, expected_lengths(2.0)))
    assert torch.equal(found[0].values, found[1].values)


def test_a_price_on_bits_pays():
    """At equal bits the loss is less: the step is finer where short codes are preferred."""
    weight, upper, step = case(200, 200)
    plain = coded_sweep(weight, upper, 2 * step, FLAT)
    wanted = bits(plain.codes)
    low, high = 0.5, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        lengths = expected_lengths(1 / middle)
        for _ in range(3):
            priced = coded_sweep(weight, upper, middle * step, lengths)
            lengths = counted_lengths(torch.bincount(priced.codes.flatten().long(), minlength=256))
        low, high = (middle, high) if bits(priced.codes) > wanted else (low, middle)
    assert bits(priced.codes) <= 1.005 * wanted and priced.loss.sum() < plain.loss.sum()


def test_far_values_end_at_the_last_code():
    found = coded_sweep(torch.tensor([[1e6, -1e6]]), torch.eye(2), torch.ones(1), FLAT)
    assert found.codes.tolist() == [[255, 1]]


def test_lengths_are_finite_and_least_where_codes_are_many():
    for spread in (1e-9, 0.3, 2.0, 500.0):
        lengths = expected_lengths(spread)
        assert lengths.isfinite().all() and lengths[128] == lengths.min()
    counts = torch.zeros(256)
    counts[130] = 7
    assert counted_lengths(counts).argmin() == 130


def test_refusals():
    weight, upper, step = case(4, 6)
    with pytest.raises(UsageError, match="step"):
        coded_sweep(weight, upper, step[:2], FLAT)
    with pytest.raises(UsageError, match="lengths"):
        coded_sweep(weight, upper, step, FLAT[:9])
    with pytest.raises(UsageError, match="above 0"):
        coded_sweep(weight, upper, 0 * step, FLAT)
    with pytest.raises(UsageError, match="trade"):
        coded_sweep(weight, upper, step, FLAT, trade=-1.0)
    with pytest.raises(UsageError, match="keep"):
        coded_sweep(weight, upper, step, FLAT, keep=weight[:, :3] > 0)
    with pytest.raises(BadWeights):
        coded_sweep(weight * torch.nan, upper, step, FLAT)
