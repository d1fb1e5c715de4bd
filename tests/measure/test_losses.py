import itertools
import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from laconic.calibrate.data import Labelled
from laconic.errors import DataError, UsageError
from laconic.measure.losses import labelled_batches, language_batches, measure_losses
from laconic.measure.paired import bootstrap, paired
from laconic.measure.speed import seconds, speed_ratio
from tests.models.tiny import TINY, VOCABULARY


class Toy(nn.Module):
    """Next-token logits from an embedding alone."""

    config = SimpleNamespace()

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(
            torch.randn(11, 11, generator=torch.Generator().manual_seed(seed))
        )

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table(input_ids))


@pytest.fixture
def windows():
    return torch.randint(11, (13, 7), generator=torch.Generator().manual_seed(1))


def test_nll_is_that_of_torch_without_the_first_position(windows):
    model = Toy()
    losses = measure_losses(model, language_batches(windows, 4))
    logits = model(windows).logits[:, :-1]
    expected = F.cross_entropy(logits.reshape(-1, 11), windows[:, 1:].reshape(-1)).item()
    assert losses.mean == pytest.approx(expected, rel=1e-6)
    assert losses.predictions.sum() == 13 * 6
    correct = (logits.argmax(-1) == windows[:, 1:]).sum()
    assert losses.correct.sum() == correct


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_batches_do_not_matter(windows, batch):
    one = measure_losses(Toy(), language_batches(windows, 3))
    other = measure_losses(Toy(), language_batches(windows, batch))
    assert torch.equal(one.nll, other.nll)


def test_a_model_against_itself(windows):
    summary = paired(measure_losses(Toy(), language_batches(windows, 4), reference=Toy()))
    assert summary.excess_log_perplexity == 0 and summary.flips == 0 and summary.kl_per_token == 0
    assert summary.ci95 == (0, 0) and summary.verdict == "tie"


def test_a_model_against_another(windows):
    model, reference = Toy(0), Toy(1)
    summary = paired(measure_losses(model, language_batches(windows, 4), reference=reference))
    p, q = model(windows).logits[:, :-1], reference(windows).logits[:, :-1]
    flips = (p.argmax(-1) != q.argmax(-1)).float().mean().item()
    kl = (
        F.kl_div(p.log_softmax(-1), q.log_softmax(-1), log_target=True, reduction="none")
        .sum(-1)
        .mean()
        .item()
    )
    assert summary.flips == pytest.approx(flips)
    assert summary.kl_per_token == pytest.approx(kl, rel=1e-5)
    low, high = summary.ci95
    assert low < summary.excess_log_perplexity < high


def test_classifiers_make_one_prediction_an_example():
    model = nn.Linear(4, 3)
    data = Labelled({"x": torch.randn(10, 4)}, torch.randint(3, (10,)))
    losses = measure_losses(model, labelled_batches(data, 4))
    expected = F.cross_entropy(model(data.inputs["x"]), data.labels).item()
    assert losses.mean == pytest.approx(expected, rel=1e-6) and losses.predictions.sum() == 10


def test_wrong_data_for_the_model_is_a_data_error():
    data = Labelled({"x": torch.randn(2, 5)}, torch.zeros(2, dtype=torch.long))
    with pytest.raises(DataError, match="Linear cannot take this data"):
        measure_losses(nn.Linear(4, 3), labelled_batches(data, 1))
    with pytest.raises(DataError, match="LSTM returned tuple, not logits"):
        measure_losses(nn.LSTM(5, 3), labelled_batches(data, 1))
    with pytest.raises(DataError, match="no data"):
        measure_losses(nn.Linear(4, 3), [])


def test_summary_needs_a_reference(windows):
    with pytest.raises(UsageError):
        paired(measure_losses(Toy(), language_batches(windows, 4)))


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        sample = torch.randn(60, generator=generator, dtype=torch.float64) + 1
        low, high = bootstrap(sample, torch.ones(60, dtype=torch.float64))
        hits += low < 1 < high
    assert 0.88 < hits / 200 <= 1


def test_bootstrap_repeats():
    values = torch.randn(20, dtype=torch.float64)
    assert bootstrap(values, torch.ones(20)) == bootstrap(values, torch.ones(20))


def test_speed_ratio_counts_work():
    slow, fast = (lambda: sum(range(400_000))), (lambda: sum(range(1_000)))
    assert speed_ratio(fast, slow) > 5
    assert [len(times) for times in seconds(fast, slow, 3)] == [3, 3]
    assert math.isfinite(speed_ratio(slow, slow, 1))


@pytest.mark.parametrize("name", ["llama", "bert", "qwen3_moe"])
def test_threads_and_batches_do_not_matter(name):
    model = TINY[name].model().float()
    windows = torch.randint(4, VOCABULARY, (9, 33), generator=torch.Generator().manual_seed(2))
    found = []
    try:
        for threads, batch in itertools.product((1, 2), (1, 8)):
            torch.set_num_threads(threads)
            if TINY[name].causal:
                batches = language_batches(windows, batch)
            else:
                batches = labelled_batches(
                    Labelled({"input_ids": windows}, windows[:, 0] % 2), batch
                )
            losses = measure_losses(model, batches, reference=TINY[name].model(1).float())
            found.append(torch.stack([losses.nll, losses.kl, losses.flips]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(found[0], other) for other in found)


def test_windows_of_a_batch_run_beside_each_other():
    seen = set()

    class Slow(Toy):
        def forward(self, input_ids):
            seen.add(threading.get_ident())
            time.sleep(0.01)
            return super().forward(input_ids)

    try:
        torch.set_num_threads(2)
        measure_losses(Slow(), language_batches(torch.randint(11, (8, 5)), 8))
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 2
