"""The other surrogates of the policy-gradient family: one number per token, neither masked nor averaged.

B sequences, T tokens; column t speaks about choosing token t. Every function raises ValueError if the shapes differ, a
mask is not bool or a number is outside its range. The first argument is the only input with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.kl import MAX_LOG_RATIO
from minirlhf.losses.masking import check_mask, check_same_shape
from minirlhf.losses.policy import _ratio, ppo_policy_loss


def reinforce_policy_loss(logps: Tensor, *, advantages: Tensor) -> Tensor:
    """-A log pi -> [B, T] in the units of the advantages, to be minimised.

    Williams 1992. Its gradient is the policy gradient only if the current policy drew the tokens: make one update per
    batch. RLOO and ReMax use this loss with another advantage.

    Args:   logps: [B, T] nats.   advantages: [B, T].
    """
    check_same_shape("reinforce_policy_loss", logps=logps, advantages=advantages)
    return -advantages * logps


def gspo_policy_loss(
    logps: Tensor,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_eps: float = 3e-4,
    clip_eps_high: float | None = None,
) -> Tensor:
    """The clipped surrogate with one ratio per sequence -> [B, T], the loss of the sequence in each of its columns.

    s_i = exp(mean over t of (logps - old_logps)), the geometric mean of the token ratios.
    Zheng et al. 2025, arXiv:2507.18071, Eq. 5 to 7. Average it with `sequence_mean`: `masked_mean` would give long
    sequences more weight.

    Args:   as `ppo_policy_loss`, with bounds hundreds of times smaller, because a mean of logs moves little;
            mask: [B, T], the tokens that the policy chose.
    """
    check_mask("gspo_policy_loss", mask, logps=logps, old_logps=old_logps)
    log_ratio = _row_mean(logps - old_logps, mask)
    bounds = {"clip_eps": clip_eps, "clip_eps_high": clip_eps_high}
    return ppo_policy_loss(log_ratio, old_logps=torch.zeros_like(log_ratio), advantages=advantages, **bounds)


def gspo_token_policy_loss(
    logps: Tensor,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_eps: float = 3e-4,
    clip_eps_high: float | None = None,
) -> Tensor:
    """GSPO with advantages that may differ from token to token -> [B, T].

    s_{i,t} = sg(s_i) pi_t / sg(pi_t): the sequence decides value and clip, the token carries the gradient.
    Zheng et al. 2025, arXiv:2507.18071, Eq. 13 and 14. With equal advantages the gradient equals the gradient of
    `gspo_policy_loss`.

    Args: as `gspo_policy_loss`.
    """
    check_mask("gspo_token_policy_loss", mask, logps=logps, old_logps=old_logps)
    # subtract the log-probs first: beside a large log-prob, fp32 would round away a third of clip_eps
    log_ratio = _row_mean(logps - old_logps, mask).detach() + (logps - logps.detach())
    bounds = {"clip_eps": clip_eps, "clip_eps_high": clip_eps_high}
    return ppo_policy_loss(log_ratio, old_logps=torch.zeros_like(log_ratio), advantages=advantages, **bounds)


def gmpo_policy_loss(
    logps: Tensor, *, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip_eps: float = 0.4
) -> Tensor:
    """Geometric instead of arithmetic mean of clipped token ratios -> [B, T], the loss of the sequence in each column.

    -A exp(mean over t of clipped log-ratios), where the clip holds log r below eps if A > 0 and above -eps if A < 0.
    Zhao et al. 2025, arXiv:2507.20673, Eq. 4. Outliers weigh less, so the range can be wide: exp(-0.4)..exp(0.4).

    Args:   as `gspo_policy_loss`; advantages are equal in a row.   clip_eps: > 0, half-width of the log-ratio in nats.
    """
    check_mask("gmpo_policy_loss", mask, logps=logps, old_logps=old_logps, advantages=advantages)
    if not clip_eps > 0:
        raise ValueError(f"gmpo_policy_loss: clip_eps must be > 0, got {clip_eps}")
    log_ratio = logps - old_logps
    clipped = torch.where(advantages > 0, log_ratio.clamp(max=clip_eps), log_ratio.clamp(min=-clip_eps))
    return -advantages * torch.exp(_row_mean(clipped, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def cispo_policy_loss(logps: Tensor, *, old_logps: Tensor, advantages: Tensor, clip_eps_high: float = 4.0) -> Tensor:
    """-sg(min(r, 1 + eps_high)) A log pi -> [B, T]: the clip is on the weight, so no token loses its gradient.

    MiniMax 2025, arXiv:2506.13585, Eq. 4 and 5 (CISPO), without a lower bound, as in the paper.

    Args:   as `ppo_policy_loss`; clip_eps_high: > 0, no unit.
    """
    check_same_shape("cispo_policy_loss", logps=logps, old_logps=old_logps, advantages=advantages)
    if not clip_eps_high > 0:
        raise ValueError(f"cispo_policy_loss: clip_eps_high must be > 0, got {clip_eps_high}")
    return -_ratio(logps, old_logps).detach().clamp(max=1 + clip_eps_high) * advantages * logps


def sapo_policy_loss(
    logps: Tensor, *, old_logps: Tensor, advantages: Tensor, tau_pos: float = 1.0, tau_neg: float = 1.05
) -> Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A -> [B, T]: a smooth gate in place of PPO's hard clip; slope 1 at r = 1.

    Gao et al. 2025, arXiv:2511.20347 (SAPO), Eq. 5 and 6. At r = 1 the loss is -2 A / tau instead of -A; only the slope
    matters.

    Args:   as `ppo_policy_loss`; tau_pos, tau_neg: > 0, sharpness where A > 0 and where A <= 0 (by default larger).
    """
    check_same_shape("sapo_policy_loss", logps=logps, old_logps=old_logps, advantages=advantages)
    if not (tau_pos > 0 and tau_neg > 0):
        raise ValueError(f"sapo_policy_loss: tau_pos and tau_neg must be > 0, got {tau_pos} and {tau_neg}")
    tau = torch.where(advantages > 0, tau_pos, tau_neg).to(logps.dtype)
    return -4 / tau * torch.sigmoid(tau * (_ratio(logps, old_logps) - 1)) * advantages


def vespo_policy_loss(
    logps: Tensor,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
) -> Tensor:
    """-sg(phi(w)) A log pi -> [B, T], for tokens that an older policy may have drawn.

    phi(w) = w^k exp(lambda (1 - w)), w = exp(sum over t of (logps - old_logps)): one weight for the whole sequence. It
    is 1 on policy and falls smoothly to 0 on both sides.
    Shen et al. 2026, arXiv:2602.10693 (VESPO), with the constants of the paper's code.

    Args:   as `gspo_policy_loss`; k, lambda: > 0, no unit, where A >= 0 (pos) and where A < 0 (neg).
    """
    check_mask("vespo_policy_loss", mask, logps=logps, old_logps=old_logps, advantages=advantages)
    if not all(constant > 0 for constant in (k_pos, lambda_pos, k_neg, lambda_neg)):
        raise ValueError(f"vespo_policy_loss: needed k, lambda > 0, got {(k_pos, lambda_pos, k_neg, lambda_neg)}")
    log_ratio = (logps - old_logps).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    log_w = torch.where(mask, log_ratio, 0).sum(-1, keepdim=True).clamp(-18.42, MAX_LOG_RATIO)  # w >= 1e-8
    k = torch.where(advantages >= 0, k_pos, k_neg).to(logps.dtype)
    lam = torch.where(advantages >= 0, lambda_pos, lambda_neg).to(logps.dtype)
    return -torch.exp(k * log_w + lam * (1 - log_w.exp())) * advantages * logps


def truncated_importance_weights(logps: Tensor, *, sampler_logps: Tensor, cap: float = 2.0) -> Tensor:
    """min(pi_trainer / pi_sampler, cap) -> [B, T], detached: factors for the losses of tokens that another engine drew.

    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (TIS); Ionides 2008.
    Both log-probs belong to the weights before the update; they differ by precision or kernels, not by training.

    Args:   logps: [B, T] nats by the trainer.   sampler_logps: [B, T] nats as sampled.   cap: >= 1, no unit.
    """
    check_same_shape("truncated_importance_weights", logps=logps, sampler_logps=sampler_logps)
    if not cap >= 1:
        raise ValueError(f"truncated_importance_weights: cap must be at least 1, got {cap}")
    return _ratio(logps, sampler_logps).detach().clamp(max=cap)


def _row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over each row's True columns, repeated in every column: [B, T]."""
    means = torch.where(mask, x, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return means.expand_as(x)
