"""The curves of Gao et al. 2022, arXiv:2210.10760, Section 3.1, fitted by least squares.

d = sqrt(KL(policy || first policy)), gain = the reward minus the reward of the first policy, so gain(0) = 0.
    best of n:  gain = d (alpha - beta d)
    RL:         gain = d (alpha - beta log d)
Both are linear in (alpha, beta): no start value, no iteration. P points of a curve, one curve for each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from minirlhf.errors import InputError

Form = Literal["best_of_n", "rl"]
DRAWS = 1_000  # of the bootstrap
QUANTILES = (0.025, 0.975)


def _log(d: np.ndarray) -> np.ndarray:
    return np.log(np.where(d > 0, d, 1.0))  # d log d goes to 0 with d


SLOPES: dict[Form, Callable[[np.ndarray], np.ndarray]] = {"best_of_n": lambda d: d, "rl": _log}


def gain_at(form: Form, d: np.ndarray, alpha: float | np.ndarray, beta: float | np.ndarray) -> np.ndarray:
    """d (alpha - beta d) or d (alpha - beta log d); d, alpha and beta broadcast."""
    return d * (alpha - beta * SLOPES[form](d))


def peak_of(form: Form, alpha: float, beta: float) -> float | None:
    """The d of the greatest gain; None if the curve rises, or falls, at every d > 0.

    best of n: alpha / (2 beta).   RL: exp(alpha / beta - 1).
    """
    if beta <= 0 or (form == "best_of_n" and alpha <= 0):
        return None
    return alpha / (2 * beta) if form == "best_of_n" else float(np.exp(min(alpha / beta - 1, 700.0)))


@dataclass(frozen=True)
class Curve:
    """The points of one seed."""

    d: np.ndarray  # [P] square roots of nats, at least 0
    gain: np.ndarray  # [P]


@dataclass(frozen=True)
class Fit:
    form: Form
    alpha: float  # [gain per sqrt(nat)]
    beta: float  # [gain per nat] for best of n; [gain per sqrt(nat)] for RL
    r2: float | None  # the share of the variance of the gains that the curve explains; None without variance
    draws: np.ndarray | None  # [DRAWS, 2] alpha and beta of the bootstrap; None for a single seed

    def __call__(self, d: np.ndarray) -> np.ndarray:
        return gain_at(self.form, d, self.alpha, self.beta)

    def band(self, d: np.ndarray) -> np.ndarray | None:
        """[2, P]: the 95% band of the curve, over samples of the seeds with replacement."""
        if self.draws is None:
            return None
        alpha, beta = self.draws.T[:, :, None]
        return np.quantile(gain_at(self.form, d, alpha, beta), QUANTILES, axis=0)

    def intervals(self) -> np.ndarray | None:
        """[2, 2]: rows alpha and beta, columns the ends of the 95% interval."""
        return None if self.draws is None else np.quantile(self.draws, QUANTILES, axis=0).T


def fit(form: Form, curves: Sequence[Curve], seed: int = 0) -> Fit:
    """Least squares over the points of all seeds, and a bootstrap over the seeds.

    The points of a seed share its policy and its proxy, so whole seeds are drawn, never single points. With five seeds
    the band is narrower than it should be: it is a hint.
    Raises: InputError unless each curve has two different distances above 0.
    """
    if not all(map(long_enough, curves)):
        raise InputError(f"fit of {form}: needed two different distances above 0 in each curve, got fewer")
    alpha, beta = map(float, _least_squares(form, curves, np.arange(len(curves))))
    d, gain = (np.concatenate([getattr(curve, name) for curve in curves]) for name in ("d", "gain"))
    rest, total = np.square(gain - gain_at(form, d, alpha, beta)).sum(), np.square(gain - gain.mean()).sum()
    draws = None
    if len(curves) > 1:
        chosen = np.random.default_rng(seed).integers(len(curves), size=(DRAWS, len(curves)))
        draws = _least_squares(form, curves, chosen)
    return Fit(form, alpha, beta, float(1 - rest / total) if total else None, draws)


def long_enough(curve: Curve) -> bool:
    """True if the points decide alpha and beta: they have two different distances above 0."""
    return len(np.unique(curve.d[curve.d > 0])) >= 2


def _least_squares(form: Form, curves: Sequence[Curve], chosen: np.ndarray) -> np.ndarray:
    """(alpha, beta) [..., 2] for the joined points of the chosen curves [..., S]: the normal equations.

    Their matrix X'X and their right side X'y are sums over the points, so the curves' own are computed once.
    """
    columns = [np.stack([curve.d, -curve.d * SLOPES[form](curve.d)]) for curve in curves]
    left = np.stack([x @ x.T for x in columns])
    right = np.stack([x @ curve.gain for x, curve in zip(columns, curves, strict=True)])
    return np.linalg.solve(left[chosen].sum(-3), right[chosen].sum(-2)[..., None])[..., 0]
