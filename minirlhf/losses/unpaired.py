"""Preference losses for single completions, each labelled good or bad. B rows; dpo.py explains log-ratios.

Every loss raises ValueError if the shapes differ, desirable is not bool or beta <= 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.losses.masking import check_same_shape


def kto_loss(
    logratios: Tensor,
    *,
    desirable: Tensor,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w_d (1 - sigmoid(beta (x - kl))) where desirable, w_u (1 - sigmoid(beta (kl - x))) elsewhere -> [B], no unit.

    Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8 (KTO). The utility saturates: a completion that is bad more often
    than good goes to probability 0, and the loss hardly ranks all other completions (docs/fixed_points.md).

    Args:
        logratios: [B] nats.   desirable: [B] bool.   beta: > 0, per nat.
        kl:        nats, >= 0, detached, the same for all rows: `kto_kl` over the whole batch.
        desirable_weight, undesirable_weight: >= 0; they balance unequal numbers of good and bad rows.
    """
    _check("kto_loss", logratios, desirable, beta)
    gain = beta * (logratios - kl)
    losses = 1 - torch.where(desirable, gain, -gain).sigmoid()
    return torch.where(desirable, losses * desirable_weight, losses * undesirable_weight)


def apo_zero_unpaired_loss(logratios: Tensor, *, desirable: Tensor, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta x) where desirable, sigmoid(beta x) elsewhere -> [B]: `apo_zero_loss` without pairs.

    D'Oosterlinck et al. 2024, arXiv:2408.06266: KTO with the KL fixed at 0.   Args: as `kto_loss`.
    """
    return kto_loss(logratios, desirable=desirable, kl=0.0, beta=beta)


def kto_kl(
    mismatched_logratios: Tensor, total: Tensor | float | None = None, count: Tensor | float | None = None
) -> Tensor:
    """max(0, mean log-ratio of completions paired with another prompt) -> scalar nats, detached: KTO's z_0, Eq. 7.

    Args:   mismatched_logratios: [B] nats.   total, count: sum and number over all ranks; None: over the B rows.
    """
    total = mismatched_logratios.sum() if total is None else torch.as_tensor(total)
    count = mismatched_logratios.numel() if count is None else count
    return (total / torch.as_tensor(count).clamp(min=1)).detach().clamp(min=0)


def bco_loss(
    logratios: Tensor,
    *,
    desirable: Tensor,
    shift: Tensor | float,
    beta: float = 0.1,
    undesirable_weights: Tensor | float = 1.0,
) -> Tensor:
    """-log sigmoid(beta x - shift) where desirable, -w log sigmoid(shift - beta x) elsewhere -> [B] nats.

    Jung et al. 2024, arXiv:2404.04656, Eq. 9 and 11 (BCO): a classifier of good against bad whose logit is the implicit
    reward minus the shift. If the shift is learned by gradient, the optimum is DPO's. If it is the running mean, this
    holds only if the judge compares with the mean reward: under a stricter judge the policy runs away, under a milder
    judge it stays too close to the reference.

    Args:
        logratios: [B] nats.   desirable: [B] bool.   beta: > 0.
        shift:               score units, the running mean of all implicit rewards, detached; see `RunningMean`.
        undesirable_weights: [B] or one number; `density_ratio` if good and bad rows come from different prompts.
    """
    _check("bco_loss", logratios, desirable, beta)
    gain = beta * logratios - shift
    weights = torch.where(desirable, torch.ones_like(gain), undesirable_weights)
    return -weights * F.logsigmoid(torch.where(desirable, gain, -gain))


def density_ratio(prob_desirable: Tensor, *, least: float = 0.5, most: float = 10.0) -> Tensor:
    """p / (1 - p), clipped -> [B], no unit: weights that give bad rows the prompt distribution of the good rows.

    Jung et al. 2024, arXiv:2404.04656, section 3.3. p in [0, 1] comes from a classifier that sees the prompt alone.
    """
    return (prob_desirable / (1 - prob_desirable)).clamp(least, most)


class RunningMean:
    """The mean of all numbers so far: BCO's reward shift. The state is two floats."""

    def __init__(self) -> None:
        self.mean, self.n = 0.0, 0.0

    def update(self, total: float, n: float) -> None:
        """Add n numbers with the sum `total` (over all ranks)."""
        self.n += n
        self.mean += (total - n * self.mean) / max(self.n, 1)

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "n": self.n}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean, self.n = state["mean"], state["n"]


def _check(name: str, logratios: Tensor, desirable: Tensor, beta: float) -> None:
    check_same_shape(name, logratios=logratios, desirable=desirable)
    if desirable.dtype != torch.bool:
        raise ValueError(
            f"{name}: desirable must be bool with True = good, got {desirable.dtype}; use desirable.bool()"
        )
    if not beta > 0:
        raise ValueError(f"{name}: beta must be > 0, got {beta}; it is the price of a nat of KL")
