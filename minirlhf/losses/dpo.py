"""Preference losses against a reference: most losses take (chosen_logratios, rejected_logratios, *, beta).

B pairs. A log-ratio is log pi(y | x) - log pi_ref(y | x), [B] nats, summed over the tokens of y (responses.py); beta
times the log-ratio is the implicit reward. In formulas c and r are the chosen and the rejected log-ratio, and e is
label_smoothing. All losses return [B], to be minimised. Other inputs give other losses: log-probs give the
reference-free form, means over tokens give the length-normalised form, outputs of a `link` give another f-divergence.
docs/fixed_points.md shows where each loss leads if it sees all pairs, labelled by Bradley-Terry.

Every loss raises ValueError if the shapes differ, beta <= 0 or label_smoothing is outside [0, 0.5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.losses.kl import MAX_LOG_RATIO
from minirlhf.losses.masking import check_same_shape


def dpo_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`dpo_sigmoid_loss` from the four sums of log-probs, [B] nats each -> [B] nats.

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7.
    """
    check_same_shape(
        "dpo_loss",
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    ratios = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return dpo_sigmoid_loss(*ratios, beta=beta, label_smoothing=label_smoothing)


def dpo_sigmoid_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """-(1 - e) log sigmoid(beta (c - r)) - e log sigmoid(-beta (c - r)) -> [B] nats; ln 2 at the first step.

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7. With e = 0 and labels drawn from Bradley-Terry, its minimum is
    pi_ref exp(reward / beta), exactly. e > 0 is cDPO (Mitchell 2023). If the label is certain, cDPO stops at
    c - r = log((1 - e) / e) / beta. If labels are drawn from Bradley-Terry, cDPO falls short of the optimum; see
    `robust_dpo_loss`.

    Args:   chosen_logratios, rejected_logratios: [B] nats.   beta: > 0, score units per nat.   label_smoothing: in
            [0, 0.5).
    """
    margin = _margin("dpo_sigmoid_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def robust_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """(-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e) -> [B] nats, m = beta (c - r).

    Chowdhury et al. 2024, arXiv:2403.00409, Eq. 12. If labels are flipped with probability e, the expected
    loss is DPO's expected loss under the true labels, so both have the same minimum.   Args: as `dpo_sigmoid_loss`.
    """
    margin = _margin("robust_dpo_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    return losses / (1 - 2 * label_smoothing)


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """(c - r - 1 / (2 beta))^2 -> [B] nats^2: c - r stops at 1 / (2 beta), even if the label is certain.

    Azar et al. 2023, arXiv:2310.12036, Eq. 17, with the paper's sums over tokens (some libraries take means). Its
    minimum is pi_ref exp(p / beta), where p is the completion's win rate, not its reward.
    """
    _margin("ipo_loss", chosen_logratios, rejected_logratios, beta)
    return (chosen_logratios - rejected_logratios - 1 / (2 * beta)).square()


def hinge_dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta (c - r)) -> [B], no unit: SLiC's ranking loss on log-ratios.

    Zhao et al. 2023, arXiv:2305.10425, Eq. 1; Liu et al. 2023, arXiv:2309.06657. It learns which completion wins, not
    by how much: over all pairs the log-ratios settle on levels 1 / beta apart.
    """
    return F.relu(1 - _margin("hinge_dpo_loss", chosen_logratios, rejected_logratios, beta))


def exo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """KL(sigmoid(m), sigmoid(-m) || 1 - e, e) -> [B] nats, m = beta (c - r): a reverse KL; DPO's is a forward KL.

    Ji et al. 2024, arXiv:2402.00856, Eq. 16 (EXO).   label_smoothing: in (0, 0.5); at 0 the KL is infinite.
    Raises: ValueError for label_smoothing 0 too.
    """
    margin = _margin("exo_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    if label_smoothing == 0:
        raise ValueError("exo_loss: label_smoothing must be above 0, got 0; the paper takes 0.001")
    win, lose = math.log1p(-label_smoothing), math.log(label_smoothing)
    won = margin.sigmoid() * (F.logsigmoid(margin) - win)
    return won + (-margin).sigmoid() * (F.logsigmoid(-margin) - lose)


def nca_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(C) - (log sigmoid(-C) + log sigmoid(-R)) / 2 -> [B] nats, C, R = beta c, beta r.

    Chen et al. 2024, arXiv:2402.05369, Eq. 13 (NCA): it sees each log-ratio, not only their difference, so it pushes
    the chosen completion up.
    """
    _margin("nca_loss", chosen_logratios, rejected_logratios, beta)
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, shift: float | Tensor = 0.0
) -> Tensor:
    """-log sigmoid(beta c - shift) - log sigmoid(-(beta r - shift)) -> [B] nats.

    Jung et al. 2024, arXiv:2404.04656, Eq. 9 (BCO): a classifier of chosen against rejected. Its minimum is
    pi_ref (p / (1 - p))^(1 / beta), where p is the probability that the completion is chosen.   shift: score units,
    the running mean of all implicit rewards, detached; see `RunningMean`.
    """
    _margin("bco_pair_loss", chosen_logratios, rejected_logratios, beta)
    return -F.logsigmoid(beta * chosen_logratios - shift) - F.logsigmoid(shift - beta * rejected_logratios)


def sppo_hard_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 -> [B] nats^2: each log-ratio has its own target.

    Wu et al. 2024, arXiv:2405.00675, Eq. 4.7 (SPPO), with win rates rounded to 1 and 0.
    """
    _margin("sppo_hard_loss", chosen_logratios, rejected_logratios, beta)
    return (chosen_logratios - 0.5 / beta).square() + (rejected_logratios + 0.5 / beta).square()


def aot_unpaired_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """`dpo_sigmoid_loss` of the sorted chosen against the sorted rejected log-ratios -> [B] nats, in sorted order.

    Melnyk et al. 2024, arXiv:2406.05882, Eq. 8 (AOT): the chosen log-ratios should dominate the rejected log-ratios
    as a distribution (first-order stochastic dominance). The result depends on the size of the batch.
    Args: as `dpo_sigmoid_loss`.   Raises: ValueError if the log-ratios are not [B].
    """
    _margin("aot_unpaired_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    if chosen_logratios.dim() != 1:
        raise ValueError(f"aot_unpaired_loss: needed log-ratios [B], got {tuple(chosen_logratios.shape)}")
    chosen, rejected = chosen_logratios.sort().values, rejected_logratios.sort().values
    return dpo_sigmoid_loss(chosen, rejected, beta=beta, label_smoothing=label_smoothing)


def aot_paired_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The policy's sorted margins against the reference's sorted margins -> [B] nats, in sorted order.

    Melnyk et al. 2024, arXiv:2406.05882, Eq. 7. (Older releases of TRL swapped the names of the two AOT losses.)
    Args: as `dpo_loss`.
    """
    check_same_shape("aot_paired_loss", chosen=chosen_logps, rejected=rejected_logps, ref_chosen=ref_chosen_logps)
    check_same_shape("aot_paired_loss", chosen=chosen_logps, ref_rejected=ref_rejected_logps)
    margins, ref_margins = chosen_logps - rejected_logps, ref_chosen_logps - ref_rejected_logps
    return aot_unpaired_loss(margins, ref_margins, beta=beta, label_smoothing=label_smoothing)


def apo_zero_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta c) + sigmoid(beta r) -> [B], no unit: chosen up, rejected down.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 9 (APO-zero): for chosen texts better than the model's own texts.
    """
    _margin("apo_zero_loss", chosen_logratios, rejected_logratios, beta)
    return 1 - (beta * chosen_logratios).sigmoid() + (beta * rejected_logratios).sigmoid()


def apo_down_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """sigmoid(beta c) + 1 - sigmoid(beta (c - r)) -> [B], no unit: both down, rejected further.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 10 (APO-down): for a model better than the chosen texts.
    """
    margin = _margin("apo_down_loss", chosen_logratios, rejected_logratios, beta)
    return (beta * chosen_logratios).sigmoid() + 1 - margin.sigmoid()


def discopop_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, temperature: float = 0.05
) -> Tensor:
    """(1 - g) (-log sigmoid(m)) + g exp(-m) -> [B], m = beta (c - r), g = sigmoid(m / temperature).

    Lu et al. 2024, arXiv:2406.08414, section 5 (LRML, found by a language model): logistic for a pair ranked wrong,
    exponential for a pair ranked right. Not convex: every pair begins at margin 0, and the slope at 0 is +0.78, so
    small steps go the wrong way (docs/results.md).   temperature: > 0, nats.
    """
    margin = _margin("discopop_loss", chosen_logratios, rejected_logratios, beta)
    if not temperature > 0:
        raise ValueError(f"discopop_loss: temperature must be > 0, got {temperature}")
    gate = (margin / temperature).sigmoid()
    # at a very negative margin the gate is 0: without the clamp, gate * exp would be 0 * inf = nan
    return (1 - gate) * -F.logsigmoid(margin) + gate * torch.exp(-margin.clamp(min=-MAX_LOG_RATIO))


def forward_kl_link(logratios: Tensor) -> Tensor:
    """-exp(-x): put in place of each log-ratio x, it makes KL(pi_ref || pi) the regulariser.

    Wang et al. 2023, arXiv:2309.16240, Table 1: the link is f'(pi / pi_ref) up to a constant, and the constant cancels
    in the difference. The identity link gives DPO's reverse KL. x is clamped: below -20 the gradient is 0.
    """
    return -torch.exp(-logratios.clamp(min=-MAX_LOG_RATIO))


def js_link(logratios: Tensor) -> Tensor:
    """x - log(1 + exp(x)): makes the Jensen-Shannon divergence the regulariser (Wang et al. 2023, Table 1)."""
    return logratios - F.softplus(logratios)


def alpha_link(logratios: Tensor, *, alpha: float = 0.5) -> Tensor:
    """-exp(-alpha x) / alpha: makes the alpha-divergence the regulariser (Wang et al. 2023, Table 1).

    alpha in (0, 1]; 1 is `forward_kl_link`.   Raises: ValueError for another alpha.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha_link: alpha must be in (0, 1], got {alpha}")
    return -torch.exp(-alpha * logratios.clamp(min=-MAX_LOG_RATIO)) / alpha


def _margin(name: str, chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """beta (c - r), after the checks that all losses share."""
    check_same_shape(name, chosen_logratios=chosen, rejected_logratios=rejected)
    if not beta > 0:
        raise ValueError(f"{name}: beta must be > 0, got {beta}; it is the price of a nat of KL")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 0.5), got {label_smoothing}; at 0.5 labels say nothing"
        )
    return beta * (chosen - rejected)
