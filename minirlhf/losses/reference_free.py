"""Preference losses that need no reference policy: all take (chosen_logps, rejected_logps, *, beta, ...), [B] each.

B pairs. CPO takes sums over tokens (`sum_logps`); ORPO, SimPO and AlphaPO take means (`mean_logps`). Each returns
[B], to be minimised. To ORPO and CPO the trainer adds the nll of the chosen answer (`cross_entropy`). Without pi_ref
the optimum cannot be pi_ref exp(reward / beta).

Every function raises ValueError if the shapes differ or beta <= 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.losses.dpo import dpo_sigmoid_loss
from minirlhf.losses.masking import check_same_shape


def orpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """-beta log sigmoid(log odds(chosen) - log odds(rejected)) -> [B] nats, odds = p / (1 - p), p = exp(mean log-prob).

    Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7 (ORPO): add it to the mean nll of the chosen answer; beta is the
    paper's lambda.   Args: means, [B] nats per token, <= 0.
    """
    _check("orpo_loss", chosen_logps, rejected_logps, beta)
    log_odds = chosen_logps - rejected_logps - (_log1mexp(chosen_logps) - _log1mexp(rejected_logps))
    return -beta * F.logsigmoid(log_odds)


def cpo_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)) -> [B] nats: DPO with a uniform reference.

    Xu et al. 2024, arXiv:2401.08417, Eq. 3 and 4 (CPO): add the nll of the chosen answer. (IPO and hinge without a
    reference are `ipo_loss` and `hinge_dpo_loss` of log-probs.)   Args: sums, [B] nats; label_smoothing as in
    `dpo_sigmoid_loss`.
    """
    return dpo_sigmoid_loss(chosen_logps, rejected_logps, beta=beta, label_smoothing=label_smoothing)


def simpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - gamma) -> [B] nats.

    Meng et al. 2024, arXiv:2405.14734, Eq. 6 (SimPO).

    Args:   means, [B] nats per token.   beta: > 0.   gamma: the margin to win by, in units of beta times nats.
    """
    _check("simpo_loss", chosen_logps, rejected_logps, beta)
    return -F.logsigmoid(beta * (chosen_logps - rejected_logps) - gamma)


def alphapo_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float = 2.0, gamma: float = 0.5, alpha: float = 0.25
) -> Tensor:
    """SimPO with the reward (1 - p^-alpha) / alpha in place of log p, p = exp(mean log-prob) -> [B] nats.

    Gupta et al. 2025, arXiv:2501.03884, Eq. 7 (AlphaPO): with alpha > 0 the probability of an unlikely answer falls
    more slowly; alpha -> 0 is SimPO.   Args: as `simpo_loss`; alpha: not 0.   Raises: ValueError if alpha is 0.
    """
    if alpha == 0:
        raise ValueError("alphapo_loss: alpha must not be 0, got 0; use simpo_loss")
    # exp(80) is finite in fp32; beyond exp(88) inf - inf would be nan
    rewards = [-torch.expm1((-alpha * logps).clamp(max=80)) / alpha for logps in (chosen_logps, rejected_logps)]
    return simpo_loss(*rewards, beta=beta, gamma=gamma)


def _check(name: str, chosen: Tensor, rejected: Tensor, beta: float) -> None:
    check_same_shape(name, chosen_logps=chosen, rejected_logps=rejected)
    if not beta > 0:
        raise ValueError(f"{name}: beta must be > 0, got {beta}")


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate near 0 and far from 0; x above -1e-7 counts as -1e-7."""
    x = x.clamp(max=-1e-7)
    near = x > -0.6931472
    # each branch gets a safe input, because an unsafe one would put nan into the gradient of the other branch
    small = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, small, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
