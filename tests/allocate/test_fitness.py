import copy

import pytest
import torch
from torch.nn import functional as F

from laconic.allocate.fitness import DenseKL, LiveModel
from laconic.errors import DataError, UsageError
from laconic.measure.losses import language_batches, measure_losses
from laconic.models.memory import MemorySource
from laconic.quantize.rtn import RTN
from laconic.tensors import IntQuantizer
from laconic.tensors.stored import Record
from laconic.tensors.transforms import ChannelScale
from tests.models.test_edits import build
from tests.models.tiny import TINY, VOCABULARY

T = 12


def windows(count=5, length=T):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(4, VOCABULARY, (count, length), generator=draw)


def sequences(count=5, length=T):
    return [{"input_ids": row[None]} for row in windows(count, length)]


@pytest.fixture
def live():
    return LiveModel(MemorySource(build("llama")))


def coarse(live, bits=2):
    """Every layer at few bits."""
    for name in live.layers:
        live.install(name, Record(RTN(bits).compress_weight(live.weight(name))))


class TestLiveModel:
    @pytest.mark.parametrize("name", TINY)
    def test_answers_like_the_model(self, name):
        model = TINY[name].model().float()
        live = LiveModel(MemorySource(model))
        inputs = TINY[name].inputs()
        with torch.no_grad():
            expected = model(**{k: v.float() if v.ndim == 4 else v for k, v in inputs.items()})
            found = live.module(**inputs)
        torch.testing.assert_close(found.logits, expected.logits)
        assert len(live.layers) == 2 * TINY[name].layers

    @pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
    def test_layers_are_swapped_and_put_back(self, name):
        source = MemorySource(TINY[name].model().float())
        before = {n: t.clone() for n, t in source.skeleton.state_dict().items()}
        live, inputs = LiveModel(source), TINY[name].inputs()
        with torch.no_grad():
            dense = live.module(**inputs).logits
            for layer in live.layers:
                changed = live.weight(layer) * 0.5
                live.install(layer, Record(RTN(8).compress_weight(changed)))
                assert not torch.equal(live.module(**inputs).logits, dense)
                live.install(layer, None)
                assert torch.equal(live.module(**inputs).logits, dense)
        for key, tensor in source.skeleton.state_dict().items():
            assert torch.equal(tensor, before[key])

    def test_transforms_and_activation_quantizers_count(self, live):
        (name, *_) = live.layers
        weight = live.weight(name)
        scale = ChannelScale(torch.rand(weight.shape[1]) + 0.5)
        inputs = sequences(1)[0]
        with torch.no_grad():
            dense = live.module(**inputs).logits
            folded = RTN(8, "row").compress_weight(scale.fold(weight))
            live.install(name, Record(folded, scale))
            close = live.module(**inputs).logits
            live.install(name, Record(folded, scale, IntQuantizer(2, "row")))
            rough = live.module(**inputs).logits
        assert (close - dense).norm() < 0.1 * (rough - dense).norm()


class TestDivergence:
    def test_is_what_is_measured_elsewhere(self, live):
        dense = build("llama")
        fitness = DenseKL(live.module, sequences())
        coarse(live)
        losses = measure_losses(live.module, language_batches(windows(), 2), reference=dense)
        with torch.no_grad():  # measure_losses leaves the last position out
            logits = [m(windows()).logits[:, -1].log_softmax(-1) for m in (dense, live.module)]
        last = F.kl_div(logits[1], logits[0], log_target=True, reduction="sum")
        expected = (losses.kl.sum() + last) / (5 * T)
        assert fitness((0,), 5 * T, 0) == pytest.approx(expected.item(), rel=1e-5)

    def test_nothing_is_lost_at_first(self, live):
        fitness = DenseKL(live.module, sequences())
        assert fitness((0,), 10**9, 0) == 0 == pytest.approx(fitness((1,), 20, 3), abs=1e-6)
        assert fitness.samples == 5 * T and fitness.top == 0

    def test_the_same_draw_gives_the_same_number_on_any_threads(self, live):
        fitness = DenseKL(live.module, sequences(9))
        coarse(live)
        values = {seed: fitness((0,), 40, seed) for seed in range(4)}
        assert len(set(values.values())) == 4
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert {seed: fitness((0,), 40, seed) for seed in range(4)} == values
            again = DenseKL(live.module, sequences(9)).fingerprint
        finally:
            torch.set_num_threads(before)
        assert again == DenseKL(live.module, sequences(9)).fingerprint != fitness.fingerprint

    def test_exactly_as_many_tokens(self, live):
        """The last sequence is cut, and cut sequences of a causal model answer as whole ones."""
        fitness = DenseKL(live.module, sequences())
        coarse(live)
        for samples in (1, T - 1, T, T + 5, 3 * T):
            draw = fitness._draw(samples, 7)
            assert sum(length for _, length in draw) == samples
            assert len({number for number, _ in draw}) == len(draw)
        rows = []
        for number, given in enumerate(sequences()):
            parts = [fitness._divergence(number, length) for length in (5, T)]
            with torch.no_grad():
                now = live.module(**given).logits[0].log_softmax(-1)
            dense = fitness._dense[number][0].log_softmax(-1)
            kl = F.kl_div(now, dense, log_target=True, reduction="none").sum(-1)
            rows.append(parts == pytest.approx([kl[:5].sum().item(), kl.sum().item()], rel=1e-4))
        assert all(rows)

    def test_long_sequences_are_taken_in_pieces(self, live, monkeypatch):
        fitness = DenseKL(live.module, sequences())
        coarse(live)
        whole = fitness((0,), 30, 1)
        monkeypatch.setattr("laconic.allocate.fitness.POSITIONS_AT_ONCE", 5)
        assert fitness((0,), 30, 1) == pytest.approx(whole)

    def test_all_samples_are_measured_once(self, live):
        fitness = DenseKL(live.module, sequences())
        coarse(live)
        value = fitness((0,), 10**9, 0)
        live.module.forward = None
        assert fitness((0,), 5 * T, 5) == value
        with pytest.raises(TypeError):
            fitness((1,), 5 * T, 5)

    @pytest.mark.parametrize("name", ["bert", "vit"])
    def test_classifiers_count_examples(self, name):
        live = LiveModel(MemorySource(TINY[name].model()))
        inputs = TINY[name].inputs()
        rows = [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(2)]
        fitness = DenseKL(live.module, rows)
        coarse(live)
        assert fitness.samples == 2
        assert fitness((0,), 1, 0) > 0 and fitness._draw(1, 0)[0][1] == 1
        both = [fitness._divergence(i, 1) for i in range(2)]
        assert fitness((0,), 2, 0) == pytest.approx(sum(both) / 2, rel=0.01)  # of a batch


class TestTop:
    def test_renormalised_over_the_most_likely(self, live):
        fitness = DenseKL(live.module, sequences(2), top=10)
        dense = copy.deepcopy(live.module)
        assert fitness.top == 10
        coarse(live)
        total = 0.0
        for given in sequences(2):
            with torch.no_grad():
                before, now = dense(**given).logits[0], live.module(**given).logits[0]
            values, classes = before.topk(10)
            q, p = values.log_softmax(-1), now.gather(1, classes).log_softmax(-1)
            total += (q.exp() * (q - p)).sum().item()
        assert fitness((0,), 2 * T, 0) == pytest.approx(total / (2 * T), rel=1e-3)

    def test_all_classes_or_more_are_all(self, live):
        assert DenseKL(live.module, sequences(1), top=VOCABULARY).top == 0

    def test_where_all_would_take_too_much_memory(self, live, monkeypatch):
        monkeypatch.setattr("laconic.allocate.fitness.WHOLE_BYTES", 1000)
        fitness = DenseKL(live.module, sequences(2))
        assert fitness.top == 128
        coarse(live)
        assert fitness((0,), 2 * T, 0) > 0


class TestBadInput:
    def test_settings(self, live):
        with pytest.raises(DataError, match="no sequences"):
            DenseKL(live.module, [])
        with pytest.raises(UsageError, match="top must be 0"):
            DenseKL(live.module, sequences(1), top=-1)

    def test_answers(self, live):
        with pytest.raises(DataError, match="no logits"):
            DenseKL(torch.nn.Flatten(0), [{"x": torch.zeros(1, 3)}])
        (name, *_) = live.layers
        broken = torch.full_like(live.weight(name), torch.inf)
        live.install(name, None)
        live.module.lm_head.register_forward_hook(lambda m, i, o: o + broken.sum())
        with pytest.raises(DataError, match="not finite"):
            DenseKL(live.module, sequences(1))
