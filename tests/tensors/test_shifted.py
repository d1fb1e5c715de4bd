import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.integers.shifts import unclipped_shift
from laconic.tensors import Shifted, ShiftQuantizer


def heavy(*shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    return x * (1 + 9 * (torch.rand(shape, generator=generator) < 0.02))


def per_block(x, size=64):
    rows, columns = x.shape
    return x.square().reshape(rows // size, size, columns // size, size).sum((1, 3))


def test_the_size_is_that_of_the_paper():
    """4 bits a weight and 24 bits a block of 64 x 64: 7.988 times smaller than fp32."""
    value = ShiftQuantizer(middle=True).quantize(torch.randn(256, 192))
    assert 8 * value.resident_bytes == 256 * 192 * 4 + 24 * 12
    assert 4 * 256 * 192 / value.resident_bytes == pytest.approx(7.988, abs=5e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_searched_shift_never_loses_more_in_any_block(bits):
    x = heavy(256, 256)
    floor, searched = (ShiftQuantizer(bits, search=n).project(x) - x for n in (1, 3))
    assert (per_block(searched) <= per_block(floor)).all()
    assert searched.norm() < floor.norm() or bits == 8


def test_a_middle_never_loses_more_in_any_block():
    x = torch.randn(128, 128) + 3
    plain, shifted = (ShiftQuantizer(middle=m).project(x) - x for m in (False, True))
    assert (per_block(shifted) <= per_block(plain) * (1 + 1e-5)).all()
    assert per_block(shifted).sum() < 0.7 * per_block(plain).sum()


def test_without_a_search_nothing_is_clipped():
    x = heavy(128, 128)
    quantizer = ShiftQuantizer(search=1)
    params = quantizer.fit(x)
    step = torch.exp2(-params.shift.float())
    off = (quantizer.project(x) - x).abs().reshape(2, 64, 2, 64).amax((1, 3))
    assert (off <= step / 2).all()
    most = x.abs().reshape(2, 64, 2, 64).amax((1, 3))
    assert (most <= 7 * step).all() and (most > 3.5 * step).all()


def test_shifts_are_exact_at_powers_of_two():
    most = torch.tensor([7.0, 3.5, 7.0000005, 0.0, 7 * 2.0**-30])
    assert unclipped_shift(most, 7).tolist() == [0, 1, -1, 0, 30]


def test_smaller_blocks_lose_less():
    x = heavy(256, 256)
    lost = [(ShiftQuantizer(4, n, n).project(x) - x).norm().item() for n in (16, 32, 64, 128)]
    assert lost == sorted(lost)


def test_extreme_values():
    for size in (1e-38, 1e-30, 1e30, 3e38):
        x = torch.tensor([[size, -size, 0.0]])
        assert torch.allclose(ShiftQuantizer(8).project(x), x, rtol=0.02, atol=1e-38)


def test_what_is_not_finite_spoils_its_block_only():
    x = torch.randn(2, 8)
    x[0, 5] = float("nan")
    value = ShiftQuantizer(8, 1, 4).project(x)
    assert (
        value[0, 4:].isnan().all() and value[0, :4].isfinite().all() and value[1].isfinite().all()
    )
    with pytest.raises(BadWeights):
        ShiftQuantizer().quantize(x)


def test_settings_are_checked():
    for wrong in ({"bits": 1}, {"bits": 17}, {"rows": 0}, {"columns": 2.5}, {"search": 5}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ShiftQuantizer(**wrong)


def test_a_tensor_whose_parts_do_not_fit():
    value = ShiftQuantizer().quantize(torch.randn(4, 4))
    for wrong in ({"shift": value.shift.float()}, {"shift": value.shift.repeat(2, 1)}):
        fields = {"middle": None, "shift": value.shift, **wrong}
        with pytest.raises(UsageError):
            Shifted(value.shape, value.dtype, 4, 4, 4, value.packed, **fields)


def test_both_decoders_agree():
    value = ShiftQuantizer(5, 3, 7, middle=True).quantize(torch.randn(10, 20) + 2)
    assert torch.equal(value._dense_by_torch(), value.dense())
