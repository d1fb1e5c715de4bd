"""Quantizers behind a pruner in a chain: zeros stay zeros, whatever the format."""

import pytest
import torch

from laconic.errors import UsageError
from laconic.factorize.svd import SVD
from laconic.probing import output_error
from laconic.prune.magnitude import Magnitude
from laconic.prune.sparsegpt import SparseGPT
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hqq import HQQ
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense
from laconic.tensors.masked import mask_of
from laconic.tensors.stored import Record
from tests.contracts.data import stats_for

QUANTIZERS = [
    RTN(4),
    RTN(3, symmetric=False),
    GPTQ(3),
    HQQ(zero="integer"),
    ECGPTQ(2),
    ECGPTQ(2.5, columns="yes"),
]


@pytest.fixture
def weight():
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()


def chained(weight, *chain):
    record, stats = Record(Dense(weight)), stats_for(GPTQ(), weight, 400)
    for method in chain:
        record = method.revise(weight, record, stats)
    return record.weight, stats


@pytest.mark.parametrize("pruner", [Magnitude(), SparseGPT(), Magnitude(pattern="2:4")], ids=repr)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
def test_zeros_stay(weight, pruner, quantizer):
    pruned, _ = chained(weight, pruner)
    value, stats = chained(weight, pruner, quantizer)
    zeros = pruned.dense() == 0
    assert (value.dense()[zeros] == 0).all() and zeros.float().mean() >= 0.5
    assert mask_of(value) is not None and not any("zeros" in note for note in stats.notes)
    assert output_error(pruned.dense(), value, stats) < 0.3


@pytest.mark.parametrize("kind", [GPTQ, ECGPTQ])
def test_what_is_kept_makes_up_for_the_rounding(weight, kind):
    pruned, stats = chained(weight, SparseGPT())
    plain, _ = chained(weight, SparseGPT(), RTN(3))
    as_many = 8 * plain.stored_bytes / plain.numel
    value, _ = chained(weight, SparseGPT(), GPTQ(3) if kind is GPTQ else ECGPTQ(as_many))
    assert output_error(pruned.dense(), value, stats) < output_error(pruned.dense(), plain, stats)


def test_the_second_of_two_grids_is_chosen_anew(weight):
    alone, _ = chained(weight, RTN(8))
    both, _ = chained(weight, ECGPTQ(2, columns="yes"), RTN(8))
    assert torch.equal(both.dense(), alone.dense())


def test_factors_are_not_undone(weight):
    with pytest.raises(UsageError, match="layer is .* which another grid would undo"):
        chained(weight, SVD(keep=0.3), RTN(8))


def test_formats_that_have_no_zeros_say_so(weight):
    _, stats = chained(weight, Magnitude(), HQQ())
    assert any("cannot keep the zeros" in note for note in stats.notes)
