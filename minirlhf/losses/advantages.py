"""From scores to per-token rewards to advantages. Pass inputs without gradient: no function detaches them.

B sequences, T tokens; column t speaks about choosing token t. N completions, F reward functions. A score of NaN means
that no judge scored the completion.

The functions raise ValueError if the shapes do not fit or the mask is not bool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.kl import kl_k1, kl_k2, kl_k3
from minirlhf.losses.masking import check_mask

REWARD_KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def kl_shaped_rewards(
    scores: Tensor, *, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float, estimator: str = "k1"
) -> Tensor:
    """Per-token rewards [B, T] in score units: -kl_coef * KL on each token, plus the score on the last True column.

    Ziegler et al. 2019, arXiv:1909.08593, Eq. 2, spread over the tokens as in Stiennon et al. 2020, arXiv:2009.01325.

    Args:
        scores:          [B].   logps, ref_logps: [B, T] nats.   mask: [B, T], the tokens that the policy chose.
        kl_coef:         score units per nat.
        estimator:       "k1" makes the optimum pi_ref exp(score / kl_coef), exactly. "k2" and "k3" are biased: the
                         policy gradient of such a reward is not the gradient of the KL (relative error 0.7 to 1.1 on
                         enumerated spaces), and most completions end near probability 0. Other libraries use them.
    Returns: [B, T], 0 outside the mask; the score of a row without a True column is not used.
    Raises: ValueError for any other estimator.
    """
    if estimator not in REWARD_KL:
        raise ValueError(
            f"kl_shaped_rewards: estimator must be k1 (exact), k2 or k3 (both biased), got {estimator!r}; see kl_k1, "
            "kl_k2, kl_k3"
        )
    check_mask("kl_shaped_rewards", mask, logps=logps, ref_logps=ref_logps)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"kl_shaped_rewards: needed scores [{mask.shape[0]}], one per row, got {tuple(scores.shape)}")
    rewards = torch.where(mask, -kl_coef * REWARD_KL[estimator](logps, ref_logps=ref_logps), 0)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, columns, -1).amax(-1, keepdim=True)
    return rewards + torch.where(columns == last, scores[:, None].to(rewards.dtype), 0)


def gae(
    rewards: Tensor, *, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation -> (advantages, returns), both [B, T] in score units, 0 outside the mask.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   returns = A + V.
    Schulman et al. 2016, arXiv:1506.02438, Eq. 16.  t + 1 is the next True column: tokens between two True columns (a
    tool's answer) were not chosen, so the loop skips them. After the last True column V and A are 0. One reverse loop
    over T, all rows at a time: O(B T).

    Args:
        rewards, values: [B, T] score units.   mask: [B, T].   gamma, lam: in [0, 1].
    Raises: ValueError if gamma or lam is outside [0, 1].
    """
    check_mask("gae", mask, rewards=rewards, values=values)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gae: gamma and lam must be in [0, 1], got {gamma} and {lam}")
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)  # nan in padding would spread
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in range(mask.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0)
    return advantages, advantages + values


def weighted_scores(scores: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over reward functions, [N, F] and [F] -> [N]; a function that does not apply (NaN) adds nothing.

    If no function applies to a row, the row's sum is NaN, and the row gets no advantage.
    """
    if scores.dim() != 2 or weights.shape != scores.shape[1:]:
        raise ValueError(
            f"weighted_scores: needed scores [N, F] and weights [F], got {tuple(scores.shape)} and "
            f"{tuple(weights.shape)}; one column and one weight per reward function"
        )
    return (scores * weights).nansum(-1).masked_fill(scores.isnan().all(-1), torch.nan)
