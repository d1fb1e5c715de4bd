import pytest
import torch
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.numerics.integers import norms, softmax
from laconic.numerics.integers.norms import align, integer_norm
from laconic.numerics.integers.products import Blocked, exact_product, integer_product
from laconic.numerics.integers.shifts import bit_length, inverse_root, reciprocal, shift_right
from laconic.numerics.integers.softmax import exponents, integer_softmax
from laconic.numerics.integers.tables import look_up, tabulate
from laconic.tensors import ShiftQuantizer
from laconic.tensors.shifted import spread_blocks

EDGES = torch.tensor([1, 2, 3, 255, 256, 257, 2**20 - 1, 2**31, 2**45 + 7, 2**61 + 1, 2**62])


def blocked(x, bits=8, rows=64, columns=64):
    quantizer = ShiftQuantizer(bits, rows, columns)
    params = quantizer.fit(x)
    return Blocked(quantizer.encode(x, params), params.shift, params.block), quantizer.project(x)


def wild(*shape):
    """Rows and columns of very different sizes."""
    return (
        torch.randn(shape)
        * torch.exp2(torch.randint(-6, 6, (shape[0], 1)))
        * (1 + 30 * (torch.rand(shape) < 0.02))
    )


class TestShifts:
    def test_rounds_halves_up(self):
        x = torch.arange(-40, 40)
        for by in range(5):
            assert torch.equal(shift_right(x, by), torch.floor(x / 2**by + 0.5).long())
        assert torch.equal(shift_right(x, -3), 8 * x)
        assert (shift_right(x, 63) == 0).all()

    def test_bit_length(self):
        assert bit_length(EDGES).tolist() == [int(v).bit_length() for v in EDGES]
        assert bit_length(torch.tensor(0)) == 0

    def test_reciprocals(self):
        x = torch.cat([EDGES, torch.randint(1, 2**40, (1000,))])
        code, shift = reciprocal(x)
        assert (code <= 2**30).all() and (code >= 2**29 - 1).all()
        error = code.double() * torch.exp2(-shift.double()) * x.double() - 1
        assert error.abs().max() < 2**-27

    def test_inverse_roots(self):
        x = torch.cat([EDGES, torch.randint(1, 2**50, (1000,))])
        for precision in (16, 28):
            code, shift = inverse_root(x, precision)
            assert (code <= 2**precision).all() and (code >= 2 ** (precision - 1) - 1).all()
            error = code.double() * torch.exp2(-shift.double()) * x.double().sqrt() - 1
            assert error.abs().max() < 2.0 ** (1 - precision) + 2**-25


class TestProducts:
    def test_one_block_is_the_float_product_bit_for_bit(self):
        (x, xd), (w, wd) = blocked(torch.randn(64, 64)), blocked(torch.randn(64, 64), 4)
        total, shift = integer_product(x, w)
        whole = total.double() * torch.exp2(-shift.double())
        assert torch.equal(whole, exact_product(x, w))
        assert torch.equal(whole.float(), F.linear(xd, wd))

    @pytest.mark.parametrize("rows", [1, 64])
    @pytest.mark.parametrize("shape", [(70, 200, 90), (1, 64, 1), (128, 300, 64)])
    def test_many_blocks(self, rows, shape):
        """The float product is exact while sums stay below 2^24; shifts between blocks lose half a step each."""
        t, c, o = shape
        (x, xd), (w, wd) = blocked(wild(t, c), rows=rows), blocked(wild(o, c), 4)
        exact = exact_product(x, w)
        fast = F.linear(xd, wd).double()
        size = F.linear(xd.abs(), wd.abs()).double()
        assert ((fast - exact).abs() <= 2**-20 * size).all()
        assert torch.equal(F.linear(xd.double(), wd.double()), exact)
        total, shift = integer_product(x, w)
        blocks = -(-c // 64)
        off = (total.double() * torch.exp2(-shift.double()) - exact).abs()
        assert (off <= blocks * torch.exp2(-shift.double()) / 2).all()

    def test_equal_shifts_lose_nothing(self):
        x = torch.randint(-127, 128, (64, 256))
        w = torch.randint(-7, 8, (64, 256))
        parts = [Blocked(m, torch.zeros(1, 4, dtype=torch.int8), (64, 64)) for m in (x, w)]
        total, shift = integer_product(*parts)
        assert (shift == 0).all() and torch.equal(total, x @ w.T)
        assert torch.equal(F.linear(x.float(), w.float()).long(), total)

    def test_blocks_that_do_not_meet(self):
        x, w = blocked(torch.randn(4, 64), columns=32)[0], blocked(torch.randn(4, 64))[0]
        with pytest.raises(UsageError, match="32 columns"):
            integer_product(x, w)


class TestSoftmax:
    @pytest.mark.parametrize("per_row", [True, False])
    @pytest.mark.parametrize("size", [1, 7, 200])
    def test_is_near(self, per_row, size):
        scores = torch.randint(-(2**12), 2**12, (4, 30, size))
        expected = torch.softmax(scores * 2.0**-9, -1)
        codes, shift = integer_softmax(exponents(scores, 2.0**-9), per_row=per_row)
        assert (codes >= 0).all() and (codes < 256).all()
        error = (codes * torch.exp2(-shift.double()) - expected).abs()
        assert error.max() < 1 / 128
        if per_row and size > 1:  # half a step of the row's largest weight
            assert (error / expected.amax(-1, keepdim=True)).max() < 1 / 100

    def test_masked_scores_have_no_weight(self):
        scores = torch.randint(-1000, 1000, (3, 5))
        for least in (
            float("-inf"),
            torch.finfo(torch.float32).min,
            torch.finfo(torch.float16).min,
        ):
            mask = torch.zeros(3, 5)
            mask[:, 3:] = least
            codes, shift = integer_softmax(exponents(scores, 0.01, mask))
            expected = torch.softmax(scores * 0.01 + mask, -1)
            assert (codes[:, 3:] == 0).all()
            assert (codes * torch.exp2(-shift.double()) - expected).abs().max() < 1 / 128

    def test_weights_of_long_rows_vanish_at_a_fixed_shift(self):
        even = torch.zeros(1, 1000, dtype=torch.int64)
        assert (integer_softmax(even, per_row=False)[0] == 0).all()
        codes, shift = integer_softmax(even)
        assert (codes * torch.exp2(-shift.double()) * 1000 - 1).abs().max() < 0.01


class TestNorms:
    @pytest.mark.parametrize("centre", [True, False])
    @pytest.mark.parametrize("bits", [8, 16])
    def test_is_near(self, centre, bits):
        x = wild(50, 192) + 3 * torch.randn(50, 1)
        quantizer = ShiftQuantizer(bits, 1, 64)
        params = quantizer.fit(x)
        values = quantizer.project(x).double()
        shift = spread_blocks(params.shift, (50, 192), params.block)
        out = integer_norm(quantizer.encode(x, params), shift, 1e-5, centre=centre) * 2.0**-12
        mean = values.mean(1, keepdim=True) if centre else 0
        power = (values - mean).square().mean(1, keepdim=True)
        assert (out - (values - mean) / (power + 1e-5).sqrt()).abs().max() < 1 / 128

    def test_rows_without_spread(self):
        shift = torch.zeros(1, 1)
        for codes in (torch.zeros(1, 8), torch.full((1, 8), 5)):
            assert (integer_norm(codes, shift, 1e-12) == 0).all()

    def test_far_apart_shifts_are_aligned_within_17_bits(self):
        codes, shift = torch.tensor([[127, 127, 0]]), torch.tensor([[0, 30, 99]])
        aligned, common = align(codes, shift)
        assert aligned.abs().max() < 2**18 and common == 9 and aligned[0, 1] == 0

    def test_rows_that_are_too_long(self):
        with pytest.raises(UsageError, match="8192"):
            integer_norm(torch.zeros(1, 10000), torch.zeros(1, 1), 0.0)


@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.tanh, torch.sigmoid])
def test_tables_are_the_function_at_every_code(function):
    table = tabulate(function)
    quantizer = ShiftQuantizer(8, 1, 64)
    x = wild(40, 128)
    params = quantizer.fit(x)
    shift = spread_blocks(params.shift, (40, 128), params.block)
    entries, out = look_up(table, quantizer.encode(x, params), shift)
    values = entries * torch.exp2(-out.double())
    expected = function(quantizer.project(x).double())
    step = torch.exp2(-out.double())
    assert torch.equal(values, (expected / step).round() * step)
    assert (entries.abs() < 2**15).all()


def test_kernels_and_torch_give_the_same_whole_numbers():
    codes = torch.randint(-127, 128, (40, 96))
    codes[3], codes[4, :90] = 0, 0
    shift = torch.randint(-3, 20, (40, 96))
    for eps, centre in ((1e-5, True), (0.0, False), (1e-12, True)):
        ours = norms._by_kernel(codes, shift, eps, centre)
        assert torch.equal(ours, norms._by_torch(codes, shift, eps, centre))
    x = torch.randint(-(2**21), 2**20, (30, 50))
    x[2, 5:] = -(2**46)
    for per_row in (True, False):
        for a, b in zip(softmax._by_kernel(x, 8, per_row), softmax._by_torch(x, 8, per_row)):
            assert torch.equal(a, b)
