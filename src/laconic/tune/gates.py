"""Gates that learn to be shut: hard-concrete ones, and choices by Gumbel noise."""

import math

import torch
from torch import Tensor, nn

from laconic.errors import UsageError
from laconic.tune.state import Callback, TrainState

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and stretch of the paper
BOUND = math.log(100)  # of |log alpha|
EDGE = 1e-6  # uniform numbers stay this far from 0 and 1


class HardConcrete(nn.Module):
    """Gates in [0, 1] that are exactly 0 or 1 with some probability, and can be trained all the same.

        u ~ U(0, 1);  s = sigmoid((log u - log(1 - u) + log alpha) / beta)
        z = clamp(s (zeta - gamma) + gamma, 0, 1)

    In training mode `forward` draws new gates, otherwise it gives `fixed`.

    Args:
        shape: of the gates.
        keep: probability with which each is open (above 0) at first, above 0 and below 1.
        log_alpha: where they start instead.
        beta: temperature, above 0.
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.

    Attributes:
        log_alpha: (*shape) float32, what is learned.

    Raises:
        UsageError: a setting out of range.

    Source: Learning Sparse Neural Networks through L0 Regularization (Louizos et al., 2018,
    arXiv 1712.01312), equations 10 to 13; beta, gamma and zeta are its own.

    Example:
        >>> gates = HardConcrete(3, keep=0.99).eval()
        >>> gates().tolist(), round(gates.expected_l0().item(), 3)
        ([1.0, 1.0, 1.0], 2.97)
    """

    def __init__(
        self, *shape: int, keep: float = 0.99, log_alpha: float | None = None,
        beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA,
    ) -> None:  # fmt: skip
        super().__init__()
        if not (beta > 0 and gamma < 0 and zeta > 1):
            raise UsageError(
                f"beta > 0, gamma < 0 and zeta > 1 are needed, found {beta}, {gamma}, {zeta}"
            )
        if not 0 < keep < 1:
            raise UsageError(f"keep is a probability above 0 and below 1, found {keep}")
        self.beta, self.gamma, self.zeta = beta, gamma, zeta
        start = math.log(keep / (1 - keep)) - self._shift if log_alpha is None else log_alpha
        self.log_alpha = nn.Parameter(torch.full(shape, start, dtype=torch.float32))

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        """Gates (*shape): drawn in training mode, `fixed` in evaluation mode."""
        return self.sample(generator) if self.training else self.fixed()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Drawn gates (*shape), through which gradients pass where they are between 0 and 1."""
        place = self.log_alpha.device if generator is None else generator.device
        u = torch.rand(self.log_alpha.shape, generator=generator, device=place)
        u = u.clamp(EDGE, 1 - EDGE).to(self.log_alpha.device)
        return self._stretched((u.logit() + self.log_alpha) / self.beta)

    def fixed(self) -> Tensor:
        """Gates without chance, (*shape): the stretched sigmoid of log alpha."""
        return self._stretched(self.log_alpha)

    @torch.no_grad()
    def counted(self) -> Tensor:
        """Gates (*shape) of which as many are 0 as are expected to be: those of the least log alpha.

        The others are sigmoid(0.8 log alpha / beta).

        Source: CoFi (Xia et al., 2022, arXiv 2204.00408), as Compresso (2023, arXiv 2310.05015) uses it.
        """
        soft = torch.sigmoid(0.8 * self.log_alpha / self.beta).flatten()
        zeros = round(soft.numel() - float(self.expected_l0()))
        soft[self.log_alpha.flatten().argsort(stable=True)[:zeros]] = 0
        return soft.reshape(self.log_alpha.shape)

    def open(self) -> Tensor:
        """Probability with which each gate is above 0, (*shape); has gradients."""
        return torch.sigmoid(self.log_alpha + self._shift)

    def expected_l0(self) -> Tensor:
        """How many gates are open on average, one number; has gradients."""
        return self.open().sum()

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{tuple(self.log_alpha.shape)}"

    @property
    def _shift(self) -> float:
        """What stands between log alpha and the log-odds of an open gate."""
        return -self.beta * math.log(-self.gamma / self.zeta)

    def _stretched(self, logits: Tensor) -> Tensor:
        s = torch.sigmoid(logits)
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


class BoundGates(Callback):
    """Keeps every log alpha within bounds after each step: a gate far outside no longer learns.

    Args:
        bound: log alpha stays within -bound and bound; above 0.

    Source: the reference code of Louizos et al. (2018), kept by CoFi and Compresso.
    """

    def __init__(self, bound: float = BOUND) -> None:
        if not bound > 0:
            raise UsageError(f"bound must be above 0, found {bound}")
        self.bound = bound

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        for module in state.model.modules():
            if isinstance(module, HardConcrete):
                module.log_alpha.clamp_(-self.bound, self.bound)


def gumbel_softmax(
    logits: Tensor, *, temperature: float = 1.0, hard: bool = False, dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """A draw from the classes of `logits`, softened so that gradients pass.

    Args:
        logits: (..., C) along `dim`.
        temperature: above 0; near 0 the draw is nearly one class.
        hard: one class, exactly, with the gradient of the soft draw.
        dim: of the classes.
        generator: draws the noise.

    Returns:
        Weights of the classes, which sum to 1.

    Raises:
        UsageError: temperature is not above 0.

    Source: Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017, arXiv 1611.01144).

    Example:
        >>> gumbel_softmax(torch.tensor([0.0, 90.0]), hard=True)
        tensor([0., 1.])
    """
    if not temperature > 0:
        raise UsageError(f"temperature must be above 0, found {temperature}")
    place = logits.device if generator is None else generator.device
    wait = torch.empty(logits.shape, dtype=torch.float32, device=place).exponential_(
        generator=generator
    )
    noise = -wait.clamp(min=torch.finfo(torch.float32).tiny).log().to(logits.device)
    soft = ((logits + noise) / temperature).softmax(dim)
    if not hard:
        return soft
    chosen = soft.detach().argmax(dim, keepdim=True)
    one = torch.zeros_like(soft).scatter_(dim, chosen, 1.0)
    return one + (soft - soft.detach())
