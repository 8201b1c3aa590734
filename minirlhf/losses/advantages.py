"""From scores to per-token rewards to advantages. Nothing here carries gradient.

B sequences, T tokens; column t speaks about choosing token t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.kl import kl_k1, kl_k3
from minirlhf.losses.masking import check_mask

REWARD_KL = {"k1": kl_k1, "k3": kl_k3}


def kl_shaped_rewards(
    scores: Tensor, *, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float, estimator: str = "k1"
) -> Tensor:
    """Per-token rewards [B, T] in score units: -kl_coef * KL everywhere, plus the score on the last True column.

    Ziegler et al. 2019, arXiv:1909.08593, Eq. 2, spread over the tokens as in Stiennon et al. 2020, arXiv:2009.01325.

    Args:
        scores:          [B].   logps, ref_logps: [B, T] nats.   mask: [B, T], the tokens the policy chose.
        kl_coef:         score units per nat.
        estimator:       "k1" makes the optimum pi_ref exp(score / kl_coef), exactly. "k3" is biased: the policy
                         gradient of a k3 reward is not that of the KL (relative error 0.82 on an enumerated space),
                         and the optimum is another one; it is here because some codes use it.
    Returns: [B, T], 0 outside the mask; a row without a True column has no place for its score and gets none.
    Raises: ValueError for another estimator, other shapes or a mask that is not bool.
    """
    if estimator not in REWARD_KL:
        raise ValueError(
            f"kl_shaped_rewards: estimator must be k1 (exact) or k3 (biased), got {estimator!r}; other forms of KL in "
            "the reward do not lead to the KL-regularised optimum"
        )
    check_mask("kl_shaped_rewards", mask, logps=logps, ref_logps=ref_logps)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"kl_shaped_rewards: needed scores [{mask.shape[0]}], one a row, got {tuple(scores.shape)}")
    rewards = torch.where(mask, -kl_coef * REWARD_KL[estimator](logps, ref_logps=ref_logps), 0)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, columns, -1).amax(-1, keepdim=True)
    return rewards + torch.where(columns == last, scores[:, None].to(rewards.dtype), 0)


def gae(
    rewards: Tensor, *, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation -> (advantages, returns), both [B, T] in score units, 0 outside the mask.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   returns = A + V.
    Schulman et al. 2016, arXiv:1506.02438, Eq. 16.  t + 1 is the next True column: what stands between (a tool's
    answer) was not chosen and is stepped over; after the last True column everything is 0. One reverse loop over T,
    all rows at a time: O(B T).

    Args:
        rewards, values: [B, T] score units.   mask: [B, T].   gamma, lam: in [0, 1].
    Raises: ValueError if the shapes differ, the mask is not bool, or gamma or lam is outside [0, 1].
    """
    check_mask("gae", mask, rewards=rewards, values=values)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gae: gamma and lam must be in [0, 1], got {gamma} and {lam}")
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)  # junk in padding must not turn nan
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in range(mask.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0)
    return advantages, advantages + values
