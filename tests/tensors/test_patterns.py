import pytest
import torch

from laconic.errors import UsageError
from laconic.tensors import Bitmask, NofM
from laconic.tensors.patterns import (
    between,
    check,
    keep_greatest,
    masked,
    ragged_note,
    run_of,
    strengths,
)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (5, 1), (1, 40), (16, 64)])
def test_exactly_the_share_goes_and_it_is_the_least(shape, sparsity):
    scores = torch.rand(shape)
    layer = keep_greatest(scores, sparsity, "layer")
    assert int((~layer).sum()) == round(sparsity * scores.numel())
    row = keep_greatest(scores, sparsity, "row")
    assert ((~row).sum(dim=1) == round(sparsity * shape[1])).all()
    if layer.any() and not layer.all():
        assert scores[~layer].max() <= scores[layer].min()
    for kept, score in zip(row, scores):
        if kept.any() and not kept.all():
            assert score[~kept].max() <= score[kept].min()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8", "1:2", "15:16"])
@pytest.mark.parametrize("columns", [1, 3, 4, 16, 33, 47])
def test_n_of_every_m_stay_also_where_the_last_run_is_short(pattern, columns):
    scores = torch.rand(6, columns)
    n, m = run_of(pattern)
    keep = keep_greatest(scores, 0.5, pattern)
    for first in range(0, columns, m):
        run, kept = scores[:, first : first + m], keep[:, first : first + m]
        expected = run.topk(min(n, run.shape[1]), dim=1).indices.sort(dim=1).values
        assert torch.equal(kept.nonzero()[:, 1].reshape(6, -1), expected)
    assert isinstance(masked(scores, keep, pattern).mask, NofM)


@pytest.mark.parametrize("pattern", ["layer", "row", "2:4"])
def test_of_equal_scores_the_first_go(pattern):
    keep = keep_greatest(torch.ones(1, 4), 0.5, pattern)
    assert keep.tolist() == [[False, False, True, True]]
    keep = keep_greatest(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), 0.5, pattern)
    assert keep.tolist() == [[False, False, True, True]]


def test_ties_over_a_layer_are_counted_exactly():
    scores = torch.randint(3, (20, 30)).float()
    assert int(keep_greatest(scores, 0.43, "layer").sum()) == 600 - round(0.43 * 600)


def test_a_convolution_keeps_its_shape():
    weight = torch.randn(8, 4, 3, 3)
    value = masked(weight, weight.flatten(1) > 0, "layer")
    assert isinstance(value.mask, Bitmask)
    assert torch.equal(value.dense(), weight.clamp(min=0))


def test_short_runs_are_noted():
    assert ragged_note(27, "2:4") == "rows of 27 are no multiple of 4: 2 of the last 3 stay"
    assert ragged_note(9, "2:4") == "rows of 9 are no multiple of 4: 1 of the last 1 stay"
    assert ragged_note(28, "2:4") == "" == ragged_note(27, "layer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1.0, "layer"), "at least 0 and below 1 .0.5 is half., found 1.0"),
        ((-0.1, "row"), "at least 0"),
        ((float("nan"), "row"), "found nan"),
        ((True, "row"), "found True"),
        ((0.5, "column"), "'row' or 'layer', or n:m such as 2:4, found 'column'"),
        ((0.5, "2:"), "n:m such as"),
        ((0.5, 124), "found 124; in YAML, write '2:4'"),
        ((0.5, "4:4"), "1 <= n < m <= 16, found 4:4"),
        ((0.5, "0:4"), "1 <= n < m"),
        ((0.5, "2:32"), "1 <= n < m"),
        ((0.7, "2:4"), "a sparsity of its own, 0.5, found 0.7"),
    ],
)
def test_settings_that_do_not_hold(settings, message):
    with pytest.raises(UsageError, match=message):
        check(*settings)


def test_settings_that_hold():
    for sparsity, pattern in ((0, "row"), (0.99, "layer"), (0.5, "1:4"), (0.75, "1:4")):
        check(sparsity, pattern)
    with pytest.raises(UsageError, match="must be 'layer', or n:m"):
        check(0.5, "row", shares=("layer",))


def test_strengths_keep_the_kind_of_pattern():
    assert strengths("row")[0] == (0.1, "row") and strengths("row")[-1] == (0.9, "row")
    assert [p for _, p in strengths("4:8")] == [f"{n}:8" for n in range(7, 0, -1)]


def test_strengths_between_two():
    assert between(0.5, 0.6, "row", 0.0) == 0.5 and between(0.5, 0.6, "layer", 0.25) == 0.525
    assert between(0.5, 0.5, "2:4", 0.25) is None
