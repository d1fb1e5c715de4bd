"""Samples of two language models for the same prompts, and how far they agree.

Both models are given the same random numbers (Gumbel noise added to the logits, so that the most
likely token is a sample): where samples part, it is the models that differ and not the dice.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import DataError, UsageError
from laconic.tensors.modules import device_of

PRECISION = torch.float32  # of the noise
TOKENS = 64
SEED = 0

Prompts = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Agreement:
    """How far samples agree with a reference's, prompt by prompt.

    Attributes:
        first_divergence: (N,) how many tokens are the same before the first that is not; the
            length of the sample where all are.
        token_agreement: (N,) float64, share of positions with the same token.
    """

    first_divergence: Tensor
    token_agreement: Tensor

    def to_json(self) -> dict[str, float]:
        """Means over prompts."""
        return {
            "first_divergence": self.first_divergence.double().mean().item(),
            "token_agreement": self.token_agreement.mean().item(),
        }


@dataclass(frozen=True)
class Variety:
    """How varied samples are.

    Attributes:
        distinct: distinct n-grams of all samples / n-grams, by n (Li et al., 2016).
        repetition: share of a sample's n-grams that stood in it before, mean over samples; n is
            the largest of `distinct`.
    """

    distinct: dict[int, float]
    repetition: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """What two models say to the same prompts.

    Attributes:
        ours: (N, T) tokens.
        theirs: (N, T) tokens of the reference.
    """

    ours: Tensor
    theirs: Tensor

    @property
    def agreement(self) -> Agreement:
        """Of both."""
        return agreement(self.ours, self.theirs)

    def to_json(self) -> dict[str, Any]:
        """JSON values: agreement, and the variety of each."""
        ours, theirs = variety(self.ours).to_json(), variety(self.theirs).to_json()
        return self.agreement.to_json() | {"ours": ours, "theirs": theirs}


def side_by_side(
    model: nn.Module, reference: nn.Module, prompts: Prompts, *, tokens: int = TOKENS,
    temperature: float = 0.0, seed: int = SEED, batch: int = 8,
) -> Samples:  # fmt: skip
    """Samples of two models, with the same random numbers; see `generate`."""
    settings: dict[str, Any] = {
        "tokens": tokens, "temperature": temperature, "seed": seed, "batch": batch
    }  # fmt: skip
    return Samples(generate(model, prompts, **settings), generate(reference, prompts, **settings))


@torch.inference_mode()
def generate(
    model: nn.Module, prompts: Prompts, *, tokens: int = TOKENS, temperature: float = 0.0,
    seed: int = SEED, batch: int = 8,
) -> Tensor:  # fmt: skip
    """Goes on from each prompt, with a cache; end-of-text tokens do not end a sample.

    Args:
        model: a causal language model of transformers, compressed or not.
        prompts: (N, T) token numbers, or N of any lengths (T_i,).
        tokens: of each sample, at least 1.
        temperature: 0 takes the most likely token; above, logits are divided by it and sampled.
        seed: of the random numbers; those of a prompt depend on its place, not on the batch.
        batch: prompts of equal length at a time on a GPU; on a CPU each goes alone, so that the
            batch cannot matter.

    Returns:
        (N, tokens), on the CPU.

    Raises:
        DataError: there is no prompt, or an empty one.
        UsageError: bad settings, or a model that does not generate.
    """
    _check(model, tokens, temperature, batch)
    rows = [row.reshape(-1) for row in prompts]
    if not rows or not all(len(row) for row in rows):
        raise DataError("there is nothing to go on from: give at least one token a prompt")
    device = device_of(model)
    samples = torch.empty(len(rows), tokens, dtype=torch.long)
    for places in _batches(rows, 1 if device.type == "cpu" else batch):
        given = torch.stack([rows[place] for place in places]).to(device)
        noise = [] if temperature == 0 else [_Noise(places, temperature, seed)]
        samples[places] = _continued(model, given, tokens, noise).cpu()
    return samples


def agreement(ours: Tensor, theirs: Tensor) -> Agreement:
    """How far samples (N, T) agree.

    Raises:
        UsageError: their shapes differ.

    Example:
        >>> agreement(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 9, 4]]))
        Agreement(first_divergence=tensor([2]), token_agreement=tensor([0.7500], dtype=torch.float64))
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise UsageError(
            f"samples (N, T) of one shape are compared, found {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}"
        )
    same = ours == theirs
    return Agreement(same.long().cumprod(dim=1).sum(dim=1), same.double().mean(dim=1))


def variety(samples: Tensor | Sequence[Tensor], sizes: Iterable[int] = (1, 2, 4)) -> Variety:
    """How varied samples are; raises `UsageError` if they are shorter than an n-gram.

    Args:
        samples: (N, T), or N of any lengths.
        sizes: the n of the n-grams.

    Example:
        >>> variety(torch.tensor([[1, 2, 1, 2]]), sizes=(1, 2))
        Variety(distinct={1: 0.5, 2: 0.6666666666666666}, repetition=0.33333333333333337)
    """
    rows = [row.reshape(-1) for row in samples]
    ns = sorted(sizes)
    if not rows or not ns or ns[0] < 1 or min(map(len, rows)) < ns[-1]:
        raise UsageError(f"n-grams of {ns} tokens need samples that are as long")
    distinct = {}
    for n in ns:
        grams = torch.cat([row.unfold(0, n, 1) for row in rows])
        distinct[n] = len(torch.unique(grams, dim=0)) / len(grams)
    each = [row.unfold(0, ns[-1], 1) for row in rows]
    fresh = [len(torch.unique(grams, dim=0)) / len(grams) for grams in each]
    return Variety(distinct, 1 - sum(fresh) / len(fresh))


class _Noise:
    """A logits processor of transformers: the most likely token becomes a sample."""

    def __init__(self, places: list[int], temperature: float, seed: int) -> None:
        seeds = [seed * 1_000_003 + place for place in places]
        self._generators = [torch.Generator().manual_seed(number) for number in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) divided by the temperature, with Gumbel noise added."""
        width = scores.shape[-1]
        uniform = torch.stack([torch.rand(width, generator=g) for g in self._generators])
        noise = -(-uniform.clamp(min=torch.finfo(PRECISION).tiny).log()).log()
        return scores.to(PRECISION) / self._temperature + noise.to(scores.device)


def _check(model: nn.Module, tokens: int, temperature: float, batch: int) -> None:
    if tokens < 1 or batch < 1:
        raise UsageError(f"tokens and batch must be at least 1, found {tokens} and {batch}")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature must be 0 or above, found {temperature!r}")
    if not callable(getattr(model, "generate", None)):
        raise UsageError(f"{type(model).__name__} does not generate: give a causal language model")


def _batches(rows: list[Tensor], size: int) -> list[list[int]]:
    """Numbers of the rows, those of one length together, at most `size` of them."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_length[len(row)].append(number)
    return [
        numbers[i : i + size]
        for numbers in by_length.values()
        for i in range(0, len(numbers), size)
    ]


def _continued(model: Any, prompts: Tensor, tokens: int, noise: list[_Noise]) -> Tensor:
    """(B, tokens) that follow `prompts` (B, T)."""
    was = model.training
    model.eval()
    try:
        whole: Tensor = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens,
            do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0, use_cache=True,
            logits_processor=noise,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{type(model).__name__} cannot go on from these: {reason}") from error
    finally:
        model.train(was)
    return whole[:, prompts.shape[1] :]
