"""Preference losses against a reference: all but three take (chosen_logratios, rejected_logratios, *, beta).

B pairs. A log-ratio is log pi(y | x) - log pi_ref(y | x), [B] nats, summed over the tokens of y; beta times it is the
implicit reward. All return [B], to be minimised, and see nothing but these numbers: a tensor of log-probs in place of
log-ratios is the reference-free form, averages in place of sums the length-normalised one (`mean_logps`), and a `link`
in place of the identity another f-divergence.

Where the loss leads, on all pairs labelled by Bradley-Terry with reward r: docs/fixed_points.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.losses.kl import MAX_LOG_RATIO
from minirlhf.losses.masking import check_mask, check_same_shape


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

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7.   Raises: ValueError if the shapes differ or beta <= 0.
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

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7. With e = 0 and labels drawn from Bradley-Terry its minimum is
    pi_ref exp(reward / beta), exactly. e > 0 is cDPO (Mitchell 2023): it stops at a finite margin, log((1 - e) / e) /
    beta on certain labels, and falls short of that optimum on honest ones; see `robust_dpo_loss`.

    Args:   chosen_logratios, rejected_logratios: [B] nats.   beta: > 0, score units per nat.   label_smoothing: in
            [0, 0.5).
    Raises: ValueError if the shapes differ or beta or label_smoothing is out of range.
    """
    margin = _margin("dpo_sigmoid_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def robust_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """(-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e) -> [B] nats, m = beta (c - r).

    Chowdhury et al. 2024, arXiv:2403.00409, Eq. 12: its expectation under labels flipped with probability e is that of
    DPO under the true ones, so its minimum is DPO's.   Args and Raises: as `dpo_sigmoid_loss`.
    """
    margin = _margin("robust_dpo_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    return losses / (1 - 2 * label_smoothing)


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """(c - r - 1 / (2 beta))^2 -> [B] nats^2: a margin to reach and to stay at, however certain the label.

    Azar et al. 2023, arXiv:2310.12036, Eq. 17, with sums over tokens as there (some libraries take means). Its minimum
    is pi_ref exp(p / beta) with p the chance to be preferred, not the reward.   Raises: as `dpo_sigmoid_loss`.
    """
    _margin("ipo_loss", chosen_logratios, rejected_logratios, beta)
    return (chosen_logratios - rejected_logratios - 1 / (2 * beta)).square()


def hinge_dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta (c - r)) -> [B], no unit: SLiC's ranking loss on log-ratios.

    Zhao et al. 2023, arXiv:2305.10425, Eq. 1; Liu et al. 2023, arXiv:2309.06657. It learns who wins, not by how much:
    over all pairs the completions settle on levels 1 / beta apart.   Raises: as `dpo_sigmoid_loss`.
    """
    return F.relu(1 - _margin("hinge_dpo_loss", chosen_logratios, rejected_logratios, beta))


def exo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """KL(sigmoid(m), sigmoid(-m) || 1 - e, e) -> [B] nats, m = beta (c - r): reverse where DPO's is forward.

    Ji et al. 2024, arXiv:2402.00856, Eq. 16 (EXO).   label_smoothing: in (0, 0.5); at 0 the KL is infinite.
    Raises: as `dpo_sigmoid_loss`, and for label_smoothing 0.
    """
    margin = _margin("exo_loss", chosen_logratios, rejected_logratios, beta, label_smoothing)
    if label_smoothing == 0:
        raise ValueError("exo_loss: label_smoothing must be above 0, got 0; the paper takes 0.001")
    win, lose = math.log1p(-label_smoothing), math.log(label_smoothing)
    won = margin.sigmoid() * (F.logsigmoid(margin) - win)
    return won + (-margin).sigmoid() * (F.logsigmoid(-margin) - lose)


def nca_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(C) - (log sigmoid(-C) + log sigmoid(-R)) / 2 -> [B] nats, C, R = beta c, beta r.

    Chen et al. 2024, arXiv:2402.05369, Eq. 13 (NCA): of absolute likelihoods, so the chosen one is pushed up too.
    Raises: as `dpo_sigmoid_loss`.
    """
    _margin("nca_loss", chosen_logratios, rejected_logratios, beta)
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, shift: float | Tensor = 0.0
) -> Tensor:
    """-log sigmoid(beta c - shift) - log sigmoid(-(beta r - shift)) -> [B] nats.

    Jung et al. 2024, arXiv:2404.04656, Eq. 9 (BCO): a classifier of good against bad, whose minimum is
    pi_ref (p / (1 - p))^(1 / beta) with p the chance that such a completion is a chosen one.   shift: score units, the
    running mean of all implicit rewards, detached; see `RunningMean`.   Raises: as `dpo_sigmoid_loss`.
    """
    _margin("bco_pair_loss", chosen_logratios, rejected_logratios, beta)
    return -F.logsigmoid(beta * chosen_logratios - shift) - F.logsigmoid(shift - beta * rejected_logratios)


def sppo_hard_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 -> [B] nats^2: each log-ratio to its own target.

    Wu et al. 2024, arXiv:2405.00675, Eq. 4.7 (SPPO), with win rates rounded to 1 and 0.   Raises: as
    `dpo_sigmoid_loss`.
    """
    _margin("sppo_hard_loss", chosen_logratios, rejected_logratios, beta)
    return (chosen_logratios - 0.5 / beta).square() + (rejected_logratios + 0.5 / beta).square()


def aot_unpaired_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """`dpo_sigmoid_loss` of the sorted chosen against the sorted rejected log-ratios -> [B] nats, in sorted order.

    Melnyk et al. 2024, arXiv:2406.05882, Eq. 8 (AOT): first-order stochastic dominance of one distribution over the
    other, on the batch at hand; the result depends on its size.   Args and Raises: as `dpo_sigmoid_loss`.
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

    Melnyk et al. 2024, arXiv:2406.05882, Eq. 7. (Older releases of TRL had the two names the other way round.)
    Args and Raises: as `dpo_loss`.
    """
    check_same_shape("aot_paired_loss", chosen=chosen_logps, rejected=rejected_logps, ref_chosen=ref_chosen_logps)
    check_same_shape("aot_paired_loss", chosen=chosen_logps, ref_rejected=ref_rejected_logps)
    margins, ref_margins = chosen_logps - rejected_logps, ref_chosen_logps - ref_rejected_logps
    return aot_unpaired_loss(margins, ref_margins, beta=beta, label_smoothing=label_smoothing)


def apo_zero_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta c) + sigmoid(beta r) -> [B], no unit: chosen up, rejected down.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 9 (APO-zero): for chosen texts better than the model's own.
    Raises: as `dpo_sigmoid_loss`.
    """
    _margin("apo_zero_loss", chosen_logratios, rejected_logratios, beta)
    return 1 - (beta * chosen_logratios).sigmoid() + (beta * rejected_logratios).sigmoid()


def apo_down_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """sigmoid(beta c) + 1 - sigmoid(beta (c - r)) -> [B], no unit: both down, rejected further.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 10 (APO-down): for a model better than the chosen texts.
    Raises: as `dpo_sigmoid_loss`.
    """
    margin = _margin("apo_down_loss", chosen_logratios, rejected_logratios, beta)
    return (beta * chosen_logratios).sigmoid() + 1 - margin.sigmoid()


def discopop_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, temperature: float = 0.05
) -> Tensor:
    """(1 - g) (-log sigmoid(m)) + g exp(-m) -> [B], m = beta (c - r), g = sigmoid(m / temperature).

    Lu et al. 2024, arXiv:2406.08414, section 5 (LRML, found by a language model): logistic where the pair is ranked
    wrong, exponential where it is right. Not convex: at margin 0, where every pair begins, its slope is +0.78, so small
    steps go the wrong way (docs/results.md).   temperature: > 0, nats.   Raises: as `dpo_sigmoid_loss`.
    """
    margin = _margin("discopop_loss", chosen_logratios, rejected_logratios, beta)
    if not temperature > 0:
        raise ValueError(f"discopop_loss: temperature must be > 0, got {temperature}")
    gate = (margin / temperature).sigmoid()
    # where the margin is hugely negative the gate is 0 already: exp must not make 0 * inf of it
    return (1 - gate) * -F.logsigmoid(margin) + gate * torch.exp(-margin.clamp(min=-MAX_LOG_RATIO))


def forward_kl_link(logratios: Tensor) -> Tensor:
    """-exp(-x): put in place of both log-ratios x, the regulariser is KL(pi_ref || pi).

    Wang et al. 2023, arXiv:2309.16240, Table 1: the link is f'(pi / pi_ref) up to a constant, which cancels in the
    difference. The identity is the reverse KL of all others. Held at x = -20, beyond which there is no gradient.
    """
    return -torch.exp(-logratios.clamp(min=-MAX_LOG_RATIO))


def js_link(logratios: Tensor) -> Tensor:
    """x - log(1 + exp(x)): the regulariser is the Jensen-Shannon divergence (Wang et al. 2023, Table 1)."""
    return logratios - F.softplus(logratios)


def alpha_link(logratios: Tensor, *, alpha: float = 0.5) -> Tensor:
    """-exp(-alpha x) / alpha: the alpha-divergence (Wang et al. 2023, Table 1); alpha in (0, 1), 1 is forward KL.

    Raises: ValueError for alpha outside (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha_link: alpha must be in (0, 1], got {alpha}")
    return -torch.exp(-alpha * logratios.clamp(min=-MAX_LOG_RATIO)) / alpha


def sum_logps(logps: Tensor, mask: Tensor) -> Tensor:
    """log pi(y | x): [B, T] nats -> [B] nats, over the response's tokens.   Raises: ValueError on other shapes."""
    check_mask("sum_logps", mask, logps=logps)
    return torch.where(mask, logps, 0).sum(-1)


def mean_logps(logps: Tensor, mask: Tensor) -> Tensor:
    """The same per token: [B, T] -> [B] nats per token; 0 for an empty response.

    DPO with these (Meng et al. 2024, arXiv:2405.14734, Table 4) does not prefer length, and its optimum is no longer
    pi_ref exp(reward / beta): a long answer's probability moves by a power of its length.
    """
    return sum_logps(logps, mask) / mask.sum(-1).clamp(min=1)


def desensitised_logps(logps: Tensor, mask: Tensor, *, other_mask: Tensor, alpha: float) -> Tensor:
    """Sum over as many tokens as both responses of a pair have, plus alpha times the rest -> [B] nats.

    Liu et al. 2024, arXiv:2409.06411, Eq. 10 (LD-DPO): alpha 1 is DPO, alpha 0 does not look at the longer tail.

    Args:   logps, mask: [B, T] of one side.   other_mask: [B, T'] of the other side.   alpha: in [0, 1].
    Raises: ValueError on other shapes or alpha.
    """
    check_mask("desensitised_logps", mask, logps=logps)
    if not 0 <= alpha <= 1 or len(mask) != len(other_mask):
        raise ValueError(
            f"desensitised_logps: needed alpha in [0, 1] and two masks of as many rows, got {alpha}, {len(mask)} and "
            f"{len(other_mask)}"
        )
    common = torch.minimum(mask.sum(-1), other_mask.sum(-1))
    shared = mask & (mask.cumsum(-1) <= common[:, None])
    return sum_logps(logps, shared) + alpha * sum_logps(logps, mask & ~shared)


def wpo_weights(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_expected: Tensor,
    rejected_expected: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
) -> Tensor:
    """w(chosen) w(rejected) -> [B], detached, at most 1: how likely the policy would have written this pair itself.

    w(y) = exp(mean over t of (log pi(y_t) - log sum_v pi(v)^2)).   Zhou et al. 2024, arXiv:2406.11827, Eq. 3 and 5
    (WPO with sampled alignment: a pair the policy samples has weight about 1, however undecided it is).

    Args:
        chosen_logps, rejected_logps:       [B, T] nats.   chosen_mask, rejected_mask: [B, T] bool.
        chosen_expected, rejected_expected: [B, T] nats, log sum_v pi(v)^2 at each token: `linear_log_collision`.
    Raises: ValueError on other shapes.
    """
    check_same_shape("wpo_weights", chosen_logps=chosen_logps, chosen_expected=chosen_expected)
    check_same_shape("wpo_weights", rejected_logps=rejected_logps, rejected_expected=rejected_expected)
    chosen = mean_logps(chosen_logps - chosen_expected, chosen_mask)
    rejected = mean_logps(rejected_logps - rejected_expected, rejected_mask)
    return torch.exp(chosen + rejected).detach().clamp(max=1)


def _margin(name: str, chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """beta (c - r), after the checks that all share."""
    check_same_shape(name, chosen_logratios=chosen, rejected_logratios=rejected)
    if not beta > 0:
        raise ValueError(f"{name}: beta must be > 0, got {beta}; it is what a nat of KL costs")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 0.5), got {label_smoothing}; at 0.5 labels say nothing"
        )
    return beta * (chosen - rejected)
