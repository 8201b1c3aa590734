"""Surrogates of the policy-gradient family and the value loss: one number per token, neither masked nor averaged.

B sequences, T tokens; column t speaks about choosing token t. Every function raises ValueError if the shapes differ, a
mask is not bool or a number is outside its range. The first argument is the only input with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.kl import MAX_LOG_RATIO, kl_k3
from minirlhf.losses.masking import check_mask, check_same_shape


def reinforce_policy_loss(logps: Tensor, *, advantages: Tensor) -> Tensor:
    """-A log pi -> [B, T] in the units of the advantages, to be minimised.

    Williams 1992. Its gradient is the policy gradient if the tokens were drawn from this very policy: one update per
    batch. RLOO and ReMax use this loss with another advantage.

    Args:   logps: [B, T] nats.   advantages: [B, T].
    """
    check_same_shape("reinforce_policy_loss", logps=logps, advantages=advantages)
    return -advantages * logps


def ppo_policy_loss(
    logps: Tensor,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Clipped surrogate -> [B, T] in the units of the advantages, to be minimised; see `masked_mean`.

    -min(r A, clip(r, 1 - eps, 1 + eps_high) A),  r = exp(logps - old_logps)
    Schulman et al. 2017, arXiv:1707.06347, Eq. 7, with the sign flipped.

    Args:
        logps:         [B, T] nats, current policy.
        old_logps:     [B, T] nats, the policy that sampled the tokens.
        advantages:    [B, T] score units (no unit once whitened).
        clip_eps:      > 0, half-width of the ratio's trust region; with 1 or more there is no lower bound.
        clip_eps_high: > 0, the upper half-width, by default clip_eps; DAPO's clip-higher (arXiv:2503.14476, Eq. 10).
        dual_clip:     > 1, bounds the loss by -dual_clip A where A < 0, so that one token with an exploded ratio cannot
                       dominate (Ye et al. 2020, arXiv:1912.09729, Eq. 5; "two-sided clipping" in INTELLECT-2,
                       arXiv:2505.07291, Eq. 2); None sets no bound.
    Padding must hold finite numbers (0). Beyond |logps - old_logps| = 20 the ratio is constant and has no gradient.
    """
    check_same_shape("ppo_policy_loss", logps=logps, old_logps=old_logps, advantages=advantages)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    if not (clip_eps > 0 and high > 0):
        raise ValueError(f"ppo_policy_loss: clip_eps and clip_eps_high must be > 0, got {clip_eps} and {high}")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"ppo_policy_loss: dual_clip must be > 1, got {dual_clip}; None turns it off")
    ratio = _ratio(logps, old_logps)
    clipped = ratio.clamp(1 - clip_eps, 1 + high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    return losses


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
    # the sequence's ratio is small beside a log-prob: subtract first, or fp32 loses a third of clip_eps
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

    Gao et al. 2025, arXiv:2511.20347 (SAPO), Eq. 5 and 6. At r = 1 it is -2 A / tau instead of -A; only the slope
    matters.

    Args:   as `ppo_policy_loss`; tau_pos, tau_neg: > 0, sharpness where A > 0 and elsewhere (sharper by default).
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
    """-sg(phi(w)) A log pi -> [B, T], for data that may be several policies old.

    phi(w) = w^k exp(lambda (1 - w)), w = exp(sum over t of (logps - old_logps)): one weight for the whole sequence, 1
    on policy, falling softly to 0 on both sides.
    Shen et al. 2026, arXiv:2602.10693 (VESPO), with the constants of the paper's code.

    Args:   as `gspo_policy_loss`; k, lambda: > 0, no unit, where A >= 0 (pos) and elsewhere (neg).
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


def ppo_value_loss(values: Tensor, *, old_values: Tensor, returns: Tensor, clip_eps: float | None = 0.2) -> Tensor:
    """0.5 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) -> [B, T] in squared score units.

    From the code that Schulman et al. published with the paper of 2017. The maximum is pessimistic, like the minimum
    in the policy loss.

    Args:
        values:     [B, T] score units.   old_values, returns: [B, T] score units.
        clip_eps:   > 0, score units; None gives the plain squared error.
    """
    check_same_shape("ppo_value_loss", values=values, old_values=old_values, returns=returns)
    losses = (values - returns).square()
    if clip_eps is not None:
        if not clip_eps > 0:
            raise ValueError(f"ppo_value_loss: clip_eps must be > 0, got {clip_eps}; None turns clipping off")
        clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
        losses = torch.maximum(losses, (clipped - returns).square())
    return 0.5 * losses


@torch.no_grad()
def ratio_diagnostics(
    logps: Tensor,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
) -> dict[str, Tensor]:
    """Numbers to watch while PPO runs, each [B, T] and without gradient; average them over the mask.

    ratio: pi / pi_old.   approx_kl: k3 estimate of KL(old || now), nats per token, never negative.
    clip_fraction: 1 where the clip takes the gradient away: the ratio has left the trust region in the direction of the
    advantage, or is beyond dual_clip.
    """
    check_same_shape("ratio_diagnostics", logps=logps, old_logps=old_logps, advantages=advantages)
    ratio = _ratio(logps, old_logps)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    clipped = torch.where(advantages > 0, ratio > 1 + high, (ratio < 1 - clip_eps) & (advantages < 0))
    if dual_clip is not None:
        clipped = clipped | ((advantages < 0) & (ratio > dual_clip))
    return {
        "ratio": ratio,
        "approx_kl": kl_k3(old_logps, ref_logps=logps),
        "clip_fraction": clipped.to(ratio.dtype),
    }


def _ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    return torch.exp((logps - old_logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def _row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over each row's True columns, repeated in every column: [B, T]."""
    means = torch.where(mask, x, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return means.expand_as(x)
