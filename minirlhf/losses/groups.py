"""Advantages without a value function, from groups of completions. Pass inputs without gradient.

B sequences, T tokens; N prompts with G completions each; the G completions of a prompt stand side by side. A score of
NaN means that no judge scored the completion.

The functions raise ValueError if the shapes do not fit, the mask is not bool or group_size < 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.advantages import gae, weighted_scores
from minirlhf.losses.masking import check_same_shape, masked_moments, mean_and_var


def discounted_returns(rewards: Tensor, *, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """r_t + gamma r_{t+1} + ... -> [B, T] score units: the advantages of plain REINFORCE.

    This is `gae` with lam = 1 and no value function.   gamma: in [0, 1].
    """
    return gae(rewards, values=torch.zeros_like(rewards), mask=mask, gamma=gamma, lam=1.0)[0]


def group_advantages(
    scores: Tensor,
    group_size: int,
    scale: str = "group",
    moments: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Score minus the mean of its group, over a standard deviation -> [N * G], no unit (score units with "none").

    (s - mean) / (std + 1e-4), std with ddof 1.   Shao et al. 2024, arXiv:2402.03300, 4.1.2 (GRPO). Dr.GRPO does
    not divide (Liu et al. 2025, arXiv:2503.20783). A group of equal scores gets 0: it teaches nothing. A score of
    NaN gets 0 and does not enter mean or std.

    Division by the std of the group gives more weight to very easy and very hard prompts (all answers but one right, or
    all but one wrong). The mean contains the sample itself, so "none" is the leave-one-out advantage times (G - 1) / G.
    A KL loss is not scaled by this factor, so its coefficient acts like a coefficient G / (G - 1) times as large. See
    `rloo_advantages`.

    Args:
        scores:     [N * G].   group_size: G >= 2.
        scale:      the std of the "group", of the whole "batch", or "none".
        moments:    for "batch": `masked_moments` of the scores summed over ranks; None takes the moments of `scores`.
    Raises: ValueError for any other scale.
    """
    groups = _groups("group_advantages", scores, group_size)
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"group_advantages: scale must be group, batch or none, got {scale!r}")
    judged, centred = ~groups.isnan(), _centred(groups)
    if scale == "group":
        squares = torch.where(judged, centred, 0).square().sum(-1, keepdim=True)
        centred = centred / ((squares / (judged.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt() + 1e-4)
    elif scale == "batch":
        var = mean_and_var(masked_moments(groups, judged) if moments is None else moments)[1]
        centred = centred / (var.sqrt() + 1e-4).to(groups.dtype)
    return torch.where(judged, centred, 0).flatten()


def turn_returns(scores: Tensor, *, turn_rewards: Tensor, turn_numbers: Tensor, turns: int) -> Tensor:
    """The return from each turn on -> [turns, B] score units; NaN where a row has no such turn.

    G_k = (score - sum of all r_j) + sum of r_j for j >= k: the part of the score that belongs to no turn comes at the
    end. A group's returns of turn k, normalised as scores are, are the advantages of the tokens of turn k: Ding et al.
    2025, arXiv:2511.14846 (GTPO), without its discount and its shaped rewards. Rewards of earlier turns do not depend
    on turn k, so they are noise in its advantage. Rows of a group may stand in different states at turn k; the
    comparison is right on average, and equal to that of GRPO at turn 1.

    Args:
        scores:       [B], the rewards of the turns included; penalties may be in them.
        turn_rewards: [B, T] on the last token of each turn.
        turn_numbers: [B, T] 1 on the tokens of the first turn, 2 on those of the second, ...; 0 elsewhere.
        turns:        the largest number of turns, over all ranks.
    """
    check_same_shape("turn_returns", turn_rewards=turn_rewards, turn_numbers=turn_numbers)
    rewards = turn_rewards.to(scores.dtype)
    earlier = [torch.where(turn_numbers < turn, rewards, 0).sum(-1) for turn in range(1, turns + 1)]
    reached = [(turn_numbers == turn).any(-1) for turn in range(1, turns + 1)]
    returns = [torch.where(has, scores - before, torch.nan) for has, before in zip(reached, earlier, strict=True)]
    return torch.stack(returns) if returns else scores.new_zeros(0, len(scores))


def gdpo_advantages(scores: Tensor, weights: Tensor, group_size: int) -> Tensor:
    """Each reward function normalised within its groups, then the weighted sum -> [N * G], no unit.

    Liu et al. 2026, arXiv:2601.05242 (GDPO), Eq. 4 and 5. If the sum came first, the function with the largest spread
    would hide all other functions. The paper's last step, whitening over the batch, is `whiten_judged`.

    Args:
        scores: [N * G, F], NaN where a function does not apply.   weights: [F].   group_size: G >= 2.
    Returns: NaN where no function applies.
    """
    columns = [group_advantages(column, group_size) for column in scores.unbind(-1)]
    return weighted_scores(torch.stack(columns, -1).masked_fill(scores.isnan(), torch.nan), weights)


def whiten_judged(scores: Tensor, moments: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """(s - mean) / (std + 1e-4) over all scores [N] that are not NaN; NaN gets 0; std with ddof 1, no unit.

    The baseline of REINFORCE over a batch.   moments: as for `group_advantages`.
    """
    judged = ~scores.isnan()
    mean, var = mean_and_var(masked_moments(scores, judged) if moments is None else moments)
    return torch.where(judged, (scores - mean) / (var.sqrt() + 1e-4), 0).to(scores.dtype)


def rloo_advantages(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean of the *other* scores of its group -> [N * G] score units.

    Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, Eq. 6 (RLOO). Unbiased: the baseline does not depend on
    the sample. A score of NaN gets 0 and does not enter the mean. The only judged sample of a group gets 0.

    Args:   scores: [N * G].   group_size: G >= 2.
    """
    groups = _groups("rloo_advantages", scores, group_size)
    judged = ~groups.isnan()
    n_others = (judged.sum(-1, keepdim=True) - 1).clamp(min=1)
    return torch.where(judged, _centred(groups) * (n_others + 1) / n_others, 0).flatten()


def remax_advantages(scores: Tensor, *, greedy_scores: Tensor) -> Tensor:
    """Score minus the score of the greedy completion of the same prompt -> [N] score units; NaN in either gives 0.

    Li et al. 2023, arXiv:2310.10505 (ReMax), Eq. 5. Unbiased, at the cost of one more completion per prompt.
    """
    check_same_shape("remax_advantages", scores=scores, greedy_scores=greedy_scores)
    return (scores - greedy_scores).nan_to_num(0.0)


def bnpo_advantages(scores: Tensor, group_size: int, moments: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """(s - p) / Beta(p; 1 + a / 3, 1 + b / 3) -> [N * G] for scores in [0, 1], p the mean of the group.

    Xiao et al. 2025, arXiv:2506.02864 (BNPO), Eq. 10 and 13: the moments of all p in the batch give a and b of a beta
    distribution, and the divisor is a density made from it. A constant divisor gives REINFORCE with a baseline.
    Beta(3/2, 3/2) gives GRPO, because it is proportional to the std of a group. (Some libraries use the name "bnpo" for
    the token mean alone.)

    Args:
        scores:  [N * G] in [0, 1].   group_size: G >= 2.
        moments: `masked_moments` of the p of all groups over all ranks; None takes the moments of these groups.
    Returns: 0 for NaN and for groups of equal scores.
    Raises: ValueError for scores outside [0, 1].
    """
    groups = _groups("bnpo_advantages", scores, group_size)
    judged = ~groups.isnan()
    if bool(((groups < 0) | (groups > 1)).any()):
        raise ValueError(
            f"bnpo_advantages: needed scores in [0, 1], got {groups[judged].min()}..{groups[judged].max()}"
        )
    p = groups.nanmean(-1, keepdim=True)
    mean, var = mean_and_var(masked_moments(p, judged.any(-1, keepdim=True)) if moments is None else moments)
    size = (mean * (1 - mean) / var.clamp(min=1e-4) - 1).clamp(min=0)  # a + b; a beta law has var < mean (1 - mean)
    beta = torch.distributions.Beta(1 + mean * size / 3, 1 + (1 - mean) * size / 3)
    density = beta.log_prob(p.nan_to_num(0.5).to(mean.dtype).clamp(1e-6, 1 - 1e-6)).exp()
    return torch.where(judged, _centred(groups) / density.clamp(min=1e-4), 0).to(scores.dtype).flatten()


def overlong_penalty(lengths: Tensor, *, max_tokens: int, buffer: int) -> Tensor:
    """Soft penalty for long completions -> [B] in [-1, 0], to be added to scores of at most 1.

    0 up to max_tokens - buffer, then a line down to -1 at max_tokens.
    Yu et al. 2025, arXiv:2503.14476 (DAPO), Eq. 13.

    Args:   lengths: [B] tokens.   max_tokens, buffer: tokens, 0 < buffer <= max_tokens.
    Raises: ValueError for another buffer.
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"overlong_penalty: buffer must be in 1..max_tokens {max_tokens}, got {buffer}")
    return ((max_tokens - buffer - lengths) / buffer).clamp(-1, 0)


def equal_groups(scores: Tensor, group_size: int) -> Tensor:
    """[N * G] -> [N] bool: True where all judged scores of a group are equal, so the group teaches nothing."""
    return _are_equal(_groups("equal_groups", scores, group_size))


def _are_equal(groups: Tensor) -> Tensor:
    return groups.nan_to_num(torch.inf).amin(-1) >= groups.nan_to_num(-torch.inf).amax(-1)


def _centred(groups: Tensor) -> Tensor:
    """Scores minus the mean of their group. Equal scores give exactly 0, without a rounding error."""
    centred = groups - groups.nanmean(-1, keepdim=True)
    return torch.where(_are_equal(groups)[:, None], torch.where(groups.isnan(), groups, 0), centred)


def _groups(name: str, scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"{name}: group_size must be at least 2, got {group_size}: a single sample has no baseline")
    if scores.dim() != 1 or len(scores) % group_size:
        raise ValueError(
            f"{name}: needed scores [N * {group_size}], whole groups side by side, got {tuple(scores.shape)}"
        )
    return scores.view(-1, group_size)
