"""Distillation losses: how far a student's answers and hidden states are from a teacher's.

All take (..., V) or (..., H) tensors of both and an optional mask (...) of the positions that count,
and give one number, the mean over them, with gradients to the student. Probabilities are computed in
float32, `ELEMENTS` logits at a time, and computed again for the gradient instead of being kept: beside
the logits themselves the memory does not grow with the vocabulary or the number of positions.
Where even the logits are too many, `through_head` makes them a few positions at a time.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from laconic.errors import DataError, UsageError

PRECISION = torch.float32  # of probabilities; means are taken in float64
ELEMENTS = (
    1 << 22
)  # logits whose probabilities are in memory together, student's and teacher's each

Rows = Callable[[Tensor, Tensor], Tensor]  # student (N, V) and teacher (N, V) to losses (N,)
Divergence = Callable[..., Tensor]  # of student and teacher logits and `mask=`


def kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """KL(teacher || student), times the squared temperature that both were softened by.

    Args:
        student: logits (..., V).
        teacher: logits (..., V).
        temperature: of both softmaxes, above 0. The factor keeps gradients of one size.
        mask: (...), the positions that count; all by default.

    Raises:
        UsageError: other shapes, or a setting out of range.
        DataError: the mask keeps no position.

    Source: Distilling the Knowledge in a Neural Network (Hinton et al., 2015, arXiv 1503.02531),
    section 2.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> kl(logits, logits).item()
        0.0
    """
    return _mean(student, teacher, mask, partial(_kl, temperature=_above_0(temperature)))


def reverse_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """KL(student || teacher): the student may leave out what it cannot do well; arguments as `kl`.

    Source: MiniLLM (Gu et al., 2024, arXiv 2306.08543), section 2.1.
    """
    rows = partial(_kl, temperature=_above_0(temperature))
    return _mean(student, teacher, mask, lambda s, t: rows(t, s))


def jensen_shannon(
    student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Generalised Jensen-Shannon divergence, `beta KL(P || M) + (1 - beta) KL(Q || M)`.

    P is the teacher, Q the student, `M = beta P + (1 - beta) Q`. Divided by beta it goes to
    KL(P || Q) for beta to 0, divided by 1 - beta to KL(Q || P) for beta to 1.

    Args:
        student: logits (..., V).
        teacher: logits (..., V).
        beta: above 0 and below 1.
        temperature: of both softmaxes, above 0.
        mask: (...), the positions that count; all by default.

    Raises:
        UsageError: other shapes, or a setting out of range.
        DataError: the mask keeps no position.

    Source: GKD (Agarwal et al., 2024, arXiv 2306.13649), equation 1.
    """
    if not 0 < beta < 1:
        raise UsageError(f"beta must be above 0 and below 1, found {beta}")
    _above_0(temperature)

    def rows(s: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = (F.log_softmax(x / temperature, -1) for x in (s, t))
        shares = torch.tensor([beta, 1 - beta], dtype=s.dtype, device=s.device).log()
        log_m = torch.logaddexp(log_p + shares[0], log_q + shares[1])
        of_p = (log_p.exp() * (log_p - log_m)).sum(-1)
        of_q = (log_q.exp() * (log_q - log_m)).sum(-1)
        return (beta * of_p + (1 - beta) * of_q) * temperature**2

    return _mean(student, teacher, mask, rows)


def logits_mse(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the logits; arguments as `kl`.

    Source: Do Deep Nets Really Need to be Deep? (Ba and Caruana, 2014, arXiv 1312.6184), equation 1.
    """
    return _mean(student, teacher, mask, lambda s, t: (s - t).square().mean(-1))


def top_k_kl(
    student: Tensor, teacher: Tensor, *, k: int = 256, temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """KL over the teacher's k most likely classes and one bucket of all others.

    It is never above `kl`, equals it for k = V, and needs k numbers of a teacher at each position.

    Args:
        student: logits (..., V).
        teacher: logits (..., V).
        k: classes of their own, at least 1; at most V are used.
        temperature: of both softmaxes, above 0.
        mask: (...), the positions that count; all by default.

    Raises:
        UsageError: other shapes, or a setting out of range.
        DataError: the mask keeps no position.

    Source: as MINITRON (Muralidharan et al., 2024, arXiv 2407.14679) with a bounded memory; the
    bucket is ours.
    """
    _above_0(temperature)
    if k < 1:
        raise UsageError(f"k must be at least 1, found {k}")

    def rows(s: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = (F.log_softmax(x / temperature, -1) for x in (s, t))
        if k >= s.shape[-1]:
            return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
        log_p, index = log_p.topk(k, dim=-1)
        rest_q = _rest(log_q.scatter(-1, index, -torch.inf))
        log_q, rest_p = log_q.gather(-1, index), _log1m(log_p)
        own = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (own + rest_p.exp() * (rest_p - rest_q)) * temperature**2

    return _mean(student, teacher, mask, rows)


def hidden_mse(
    student: Tensor, teacher: Tensor, *, projection: nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean squared difference of hidden states, after a projection of the student's.

    Args:
        student: (..., H).
        teacher: (..., G).
        projection: H to G, trained along; needed where they differ.
        mask: (...), the positions that count; all by default.

    Raises:
        UsageError: shapes that do not fit.
        DataError: the mask keeps no position.

    Source: FitNets (Romero et al., 2015, arXiv 1412.6550), equation 3.
    """
    own = student if projection is None else projection(student)
    return _mean(own, teacher, mask, lambda s, t: (s - t).square().mean(-1))


def hidden_cosine(
    student: Tensor, teacher: Tensor, *, projection: nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One minus the cosine between hidden states, 0 to 2; arguments as `hidden_mse`.

    Source: DistilBERT (Sanh et al., 2019, arXiv 1910.01108), section 3.
    """
    own = student if projection is None else projection(student)
    return _mean(own, teacher, mask, lambda s, t: 1 - F.cosine_similarity(s, t, dim=-1))


def through_head(
    divergence: Divergence, student: Tensor, teacher: Tensor,
    student_head: Callable[[Tensor], Tensor], teacher_head: Callable[[Tensor], Tensor],
    *, positions: int = 256, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A divergence between logits that are made from last hidden states a few positions at a time.

    Args:
        divergence: of logits, such as `kl`, with its settings bound.
        student: last hidden states (..., H), as the head takes them.
        teacher: last hidden states (..., G).
        student_head: to logits (..., V); gradients reach its parameters.
        teacher_head: to logits (..., V).
        positions: whose logits are in memory together.
        mask: (...), the positions that count; all by default.

    Raises:
        UsageError: shapes that do not fit.
        DataError: the mask keeps no position.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise UsageError(
            f"positions differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )

    def part(s: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            answer = teacher_head(t)
        return divergence(student_head(s), answer) * len(s)

    return _over_positions(student, teacher, mask, part, positions)


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2


def _log1m(log_p: Tensor) -> Tensor:
    """log(1 - sum of exp) over the last dimension, finite."""
    rest = 1 - log_p.double().exp().sum(-1)
    return rest.clamp(min=torch.finfo(PRECISION).tiny).log().to(log_p.dtype)


def _rest(log_q: Tensor) -> Tensor:
    """The logarithm of the sum of what is not -inf."""
    return log_q.logsumexp(-1)


def _above_0(temperature: float) -> float:
    if not temperature > 0:
        raise UsageError(f"temperature must be above 0, found {temperature}")
    return temperature


def _mean(student: Tensor, teacher: Tensor, mask: Tensor | None, rows: Rows) -> Tensor:
    if student.shape != teacher.shape:
        raise UsageError(
            f"student and teacher must have one shape, found {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: cut the vocabulary, or give a projection"
        )

    def part(s: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(s.device.type, enabled=False):
            return rows(s.to(PRECISION), t.to(PRECISION)).sum(dtype=torch.float64)

    step = max(1, ELEMENTS // max(1, student.shape[-1]))
    return _over_positions(student, teacher.detach(), mask, part, step)


def _over_positions(
    student: Tensor, teacher: Tensor, mask: Tensor | None,
    part: Callable[[Tensor, Tensor], Tensor], step: int,
) -> Tensor:  # fmt: skip
    """The mean of `part`, a sum over positions, taken `step` positions at a time."""
    kept = _kept(student, mask)
    rows = student.reshape(-1, student.shape[-1])
    others = teacher.reshape(-1, teacher.shape[-1])
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    for index in torch.split(kept, step):

        def one(index: Tensor = index) -> Tensor:
            return part(rows[index], others[index])

        total = total + checkpoint(one, use_reentrant=False, preserve_rng_state=False)
    return (total / len(kept)).to(PRECISION)


def _kept(student: Tensor, mask: Tensor | None) -> Tensor:
    """Numbers of the positions that count."""
    positions = student.shape[:-1]
    if mask is None:
        index = torch.arange(positions.numel(), device=student.device)
    elif mask.shape != positions:
        raise UsageError(
            f"a mask of shape {tuple(mask.shape)} for positions of shape {tuple(positions)}"
        )
    else:
        index = mask.flatten().nonzero().squeeze(1).to(student.device)
    if not len(index):
        raise DataError("no position counts: the mask keeps none, or there are none")
    return index
