import copy

import pytest
import torch
from torch import nn

from laconic.errors import DataError, UsageError
from laconic.measure.generation import Samples, agreement, generate, side_by_side, variety
from laconic.tensors import IntQuantizer
from laconic.tensors.modules import CompressedLinear
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from tests.models.tiny import TINY, VOCABULARY


@pytest.fixture(scope="module")
def model():
    return TINY["llama"].model().float()


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(4, VOCABULARY, (5, 6), generator=torch.Generator().manual_seed(3))


def compressed(model, bits):
    small = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and "layers" in name:
            value = IntQuantizer(bits, "row").quantize(module.weight.detach())
            replace_module(small, name, {"weight": Record(value)})
    return small


def naive(model, prompt, tokens):
    """Greedy without a cache."""
    row = prompt[None]
    for _ in range(tokens):
        with torch.no_grad():
            row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], dim=1)
    return row[0, len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen3_moe"])
def test_greedy_is_the_most_likely_token_each_time(name):
    model = TINY[name].model().float()
    prompts = TINY[name].inputs()["input_ids"]
    samples = generate(model, prompts, tokens=9)
    assert torch.equal(samples, torch.stack([naive(model, p, 9) for p in prompts]))


def test_prompts_of_any_lengths_and_batches_give_the_same(model, prompts):
    ragged = [prompts[0], prompts[1, :3], prompts[2], prompts[3, :1]]
    for temperature in (0.0, 1.0):
        samples = generate(model, ragged, tokens=5, temperature=temperature)
        again = generate(model, ragged, tokens=5, temperature=temperature, batch=1)
        assert samples.shape == (4, 5) and torch.equal(samples, again)


def test_sampling_repeats_by_seed_and_by_place(model, prompts):
    same = prompts[:1].repeat(3, 1)
    one = generate(model, same, tokens=8, temperature=1.0, seed=1)
    assert torch.equal(one, generate(model, same, tokens=8, temperature=1.0, seed=1))
    assert not torch.equal(one, generate(model, same, tokens=8, temperature=1.0, seed=2))
    assert not torch.equal(one[0], one[1])


def test_samples_follow_the_distribution():
    model = TINY["llama"].model().float()
    prompt = torch.tensor([[5, 9, 17]])
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        expected = model(prompt).logits[0, -1].div(2).softmax(-1)
    drawn = generate(model, prompt.repeat(600, 1), tokens=1, temperature=2.0)
    found = torch.bincount(drawn[:, 0], minlength=VOCABULARY) / 600
    assert 0.5 * (found - expected).abs().sum() < 0.2  # total variation; a uniform one has more
    assert 0.5 * (expected - 1 / VOCABULARY).abs().sum() > 0.3


def test_the_end_of_text_does_not_end_a_sample():
    model = TINY["llama"].model().float()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all logits are equal: the first token is the most likely
    model.generation_config.eos_token_id = 0
    assert generate(model, torch.tensor([[5]]), tokens=4).tolist() == [[0, 0, 0, 0]]


def test_more_bits_agree_more(model, prompts):
    shares = []
    for bits in (8, 2):
        small = compressed(model, bits)
        assert any(isinstance(m, CompressedLinear) for m in small.modules())
        samples = side_by_side(small, model, prompts, tokens=12, temperature=0.5)
        shares.append(samples.agreement.token_agreement.mean())
    assert shares[0] > shares[1]


def test_a_model_agrees_with_itself_even_when_it_samples(model, prompts):
    samples = side_by_side(model, model, prompts, tokens=6, temperature=1.5)
    assert torch.equal(samples.ours, samples.theirs)
    summary = samples.to_json()
    assert summary["first_divergence"] == 6 and summary["token_agreement"] == 1
    assert set(summary["ours"]) == {"distinct", "repetition"}


def test_agreement():
    ours = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [9, 2, 3, 4]])
    theirs = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 4], [1, 2, 3, 0]])
    found = Samples(ours, theirs).agreement
    assert found.first_divergence.tolist() == [4, 2, 0]
    assert found.token_agreement.tolist() == [1, 0.75, 0.5]
    assert found.to_json() == {"first_divergence": 2, "token_agreement": 0.75}
    with pytest.raises(UsageError, match="one shape"):
        agreement(ours, theirs[:, :2])


def test_variety():
    loop = variety(torch.tensor([[1, 1, 1, 1, 1], [1, 2, 3, 4, 5]]), sizes=(2, 1))
    assert loop.distinct == {1: 5 / 10, 2: 5 / 8} and loop.repetition == pytest.approx(0.75 / 2)
    ragged = variety([torch.tensor([1, 2]), torch.tensor([1, 2, 3])], sizes=[2])
    assert ragged.distinct == {2: 2 / 3} and ragged.repetition == 0
    for bad in ({"sizes": (3,)}, {"sizes": ()}, {"sizes": (0, 1)}):
        with pytest.raises(UsageError, match="n-grams"):
            variety(torch.tensor([[1, 2]]), **bad)


def test_wrong_use(model, prompts):
    with pytest.raises(DataError, match="at least one token"):
        generate(model, [])
    with pytest.raises(DataError, match="at least one token"):
        generate(model, [torch.tensor([], dtype=torch.long)])
    with pytest.raises(UsageError, match="does not generate"):
        generate(nn.Linear(2, 2), prompts)
    for bad in ({"tokens": 0}, {"batch": 0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(UsageError):
            generate(model, prompts, **bad)
    with pytest.raises(DataError, match="cannot go on"):
        generate(model, torch.tensor([[VOCABULARY + 5]]))
    model.train()
    generate(model, prompts[:1], tokens=1)
    assert model.training
    model.eval()
