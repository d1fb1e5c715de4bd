"""A law of the loss of models that are trained in a compressed form, fitted to runs.

    L(N, D, R) = A / (N rho_R)^alpha + B / D^beta + E

N are the parameters, D the training tokens, R the format that weights are in while training: a model in it is
worth one of `rho_R N` parameters (Panferov et al., 2025, arXiv 2506.01863). Across formats rho follows from how
much of Gaussian noise a format loses, its GMSE: `rho = l tanh(f log_1/4 GMSE)^c`.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import optimize

from laconic.errors import DataError, UsageError
from laconic.evaluate.capacity import capacity

DENSE = "dense"
HUBER = 1e-3  # residuals of log-losses beyond which a run counts only linearly
EXPONENTS = (0.1, 1.0)  # of the law
SMALLEST = 1e-3  # rho
LINK_FORMATS = 4  # from which the three numbers of the link are fitted
COLUMNS = ("parameters", "tokens", "format", "loss")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        parameters: N, above 0.
        tokens: D, above 0.
        format: `dense`, or as `capacity` takes it, such as `rtn:bits=4` or `magnitude:pattern=2:4+rtn:bits=4`.
        loss: at the end, nats.
    """

    parameters: float
    tokens: float
    format: str
    loss: float

    def __post_init__(self) -> None:
        values = (self.parameters, self.tokens, self.loss)
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise DataError(f"a run has parameters, tokens and a loss above 0, found {self}")


@dataclass(frozen=True)
class Link:
    """`rho = top tanh(slope log_1/4 GMSE)^power`."""

    top: float
    slope: float
    power: float

    def __call__(self, gmse: float) -> float:
        """Rho of a format that loses this share of Gaussian noise; `top` where nothing is lost."""
        bits = math.log(gmse) / math.log(0.25) if gmse > 0 else math.inf
        return self.top * math.tanh(self.slope * max(0.0, bits)) ** self.power


@dataclass(frozen=True)
class Law:
    """What `fit` found.

    Attributes:
        a: A of the law.
        b: B.
        e: E, the loss that no size and no data get below.
        alpha: exponent of the parameters.
        beta: exponent of the tokens.
        rho: of each format; 1 for `dense`.
        gmse: of each format, by `capacity`.
        link: from GMSE to rho; None with fewer than four formats.
        left_out: by format, rho as the link that was fitted without it says.
        residual: root mean square of the relative errors of all losses.
    """

    a: float
    b: float
    e: float
    alpha: float
    beta: float
    rho: Mapping[str, float] = field(default_factory=dict)
    gmse: Mapping[str, float] = field(default_factory=dict)
    link: Link | None = None
    left_out: Mapping[str, float] = field(default_factory=dict)
    residual: float = 0.0

    def efficiency(self, format: str) -> float:
        """Rho of a format: fitted, or by the link from what it loses of noise.

        Raises:
            DataError: no run had it, and there is no link.
        """
        if format in self.rho:
            return self.rho[format]
        if self.link is None:
            raise DataError(
                f"no run was in {format}, and fewer than {LINK_FORMATS} formats were: there is nothing to tell from"
            )
        return self.link(capacity(format).gmse)

    def predict(self, parameters: float, tokens: float, format: str = DENSE) -> float:
        """The loss of a model of that size, trained on so many tokens in that format."""
        size = parameters * self.efficiency(format)
        return self.a / size**self.alpha + self.b / tokens**self.beta + self.e

    def rank(self, formats: Sequence[str]) -> list[tuple[str, float, float]]:
        """Formats by what their bytes are worth: (format, rho, rho for each resident bit), best first.

        At a budget of bytes N is the budget over the bits of a weight, so that the best format has most rho a bit.
        """
        rows = [(name, self.efficiency(name), capacity(name).resident_bits) for name in formats]
        return sorted(((n, r, r / bits) for n, r, bits in rows), key=lambda row: -row[2])


def read_runs(file: str | Path) -> list[Run]:
    """Runs from a CSV file with the columns parameters, tokens, format and loss.

    Raises:
        DataError: no such file, other columns, or a row that is no run.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open(newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path}: expected the columns {', '.join(COLUMNS)}; {missing[0]} is missing"
            )
        runs = []
        for number, row in enumerate(reader, start=2):
            try:
                runs.append(
                    Run(
                        float(row["parameters"]),
                        float(row["tokens"]),
                        row["format"],
                        float(row["loss"]),
                    )
                )
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    return runs


def fit(runs: Sequence[Run]) -> Law:
    """Fits the law to dense runs, then rho of each other format, then the link between rho and GMSE.

    Residuals of log-losses count by Huber's loss at 0.001, and exponents stay between 0.1 and 1.

    Args:
        runs: dense ones of at least five combinations of size and tokens, that differ in both; any of others.

    Raises:
        DataError: there are too few.
    """
    dense = [run for run in runs if run.format == DENSE]
    sizes, lengths = {run.parameters for run in dense}, {run.tokens for run in dense}
    if len({(r.parameters, r.tokens) for r in dense}) < 5 or len(sizes) < 2 or len(lengths) < 2:
        raise DataError(
            "the law has five numbers: give at least five dense runs, of several sizes and several numbers of "
            f"tokens; found {len(dense)} of {len(sizes)} and {len(lengths)}"
        )
    a, b, e, alpha, beta = _dense(dense)
    law = Law(a, b, e, alpha, beta, {DENSE: 1.0})
    formats = list(dict.fromkeys(run.format for run in runs if run.format != DENSE))
    rho = {name: _rho(law, [r for r in runs if r.format == name]) for name in formats}
    gmse = {name: capacity(name).gmse for name in formats}
    link, left_out = None, {}
    if len(formats) >= LINK_FORMATS:
        link = _link([gmse[n] for n in formats], [rho[n] for n in formats])
    if len(formats) > LINK_FORMATS:
        for name in formats:
            others = [n for n in formats if n != name]
            left_out[name] = _link([gmse[n] for n in others], [rho[n] for n in others])(gmse[name])
    law = Law(a, b, e, alpha, beta, {DENSE: 1.0} | rho, gmse, link, left_out)
    off = [law.predict(r.parameters, r.tokens, r.format) / r.loss - 1 for r in runs]
    return Law(
        a, b, e, alpha, beta, law.rho, gmse, link, left_out, float(np.sqrt(np.mean(np.square(off))))
    )


def _dense(runs: Sequence[Run]) -> tuple[float, float, float, float, float]:
    """A, B, E, alpha and beta with the least Huber loss, from several starts."""
    n, d, loss = (np.array([getattr(r, k) for r in runs]) for k in ("parameters", "tokens", "loss"))

    def lost(x: np.ndarray) -> float:
        log_a, log_b, log_e, alpha, beta = x
        terms = [log_a - alpha * np.log(n), log_b - beta * np.log(d), np.full(len(n), log_e)]
        return float(_huber(np.logaddexp.reduce(terms, axis=0) - np.log(loss)).sum() / HUBER**2)

    best = None
    least = float(np.log(loss.min()))
    for alpha in (0.2, 0.4, 0.7):
        for beta in (0.2, 0.4, 0.7):
            for share in (0.9, 0.5, 0.1):  # of the least loss that is E
                spare = math.log(max(1e-9, (1 - share) * loss.min() / 2))
                start = [
                    spare + alpha * np.log(n).mean(), spare + beta * np.log(d).mean(), least + math.log(share), alpha, beta,
                ]  # fmt: skip
                bounds = [(None, None)] * 2 + [(None, least), EXPONENTS, EXPONENTS]
                found = optimize.minimize(
                    lost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 5000, "maxfun": 50_000}
                )  # fmt: skip
                if best is None or found.fun < best.fun:
                    best = found
    assert best is not None
    log_a, log_b, log_e, alpha, beta = best.x
    return math.exp(log_a), math.exp(log_b), math.exp(log_e), float(alpha), float(beta)


def _rho(law: Law, runs: Sequence[Run]) -> float:
    """The rho with which the law says what these runs lost, all else being fixed."""

    def lost(log_rho: float) -> float:
        off = [
            math.log(
                (law.a / (r.parameters * math.exp(log_rho)) ** law.alpha + law.b / r.tokens**law.beta + law.e) / r.loss
            )
            for r in runs
        ]  # fmt: skip
        return float(_huber(np.array(off)).sum() / HUBER**2)

    found = optimize.minimize_scalar(
        lost, bounds=(math.log(SMALLEST), math.log(1.5)), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(found.x)


def _link(gmse: Sequence[float], rho: Sequence[float]) -> Link:
    """The link with the least squared errors of log rho."""
    if not all(value > 0 for value in gmse):
        raise UsageError("a format that loses nothing says nothing of the link")
    bits = np.log(gmse) / math.log(0.25)

    def off(x: np.ndarray) -> np.ndarray:
        top, slope, power = np.exp(x)
        return np.asarray(np.log(top * np.tanh(slope * bits) ** power) - np.log(rho))

    fits = [
        optimize.least_squares(off, np.log([1.0, slope, power]), bounds=(np.log([0.5, 1e-3, 1e-2]), np.log([1.2, 10, 10])))
        for slope in (0.1, 0.4, 1.0) for power in (0.5, 1.0, 2.0)
    ]  # fmt: skip
    top, slope, power = np.exp(min(fits, key=lambda f: f.cost).x)
    return Link(float(top), float(slope), float(power))


def _huber(off: np.ndarray) -> np.ndarray:
    size = np.abs(off)
    return np.where(size <= HUBER, off**2 / 2, HUBER * (size - HUBER / 2))
