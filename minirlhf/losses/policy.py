"""The clipped surrogate of PPO, its diagnostics and the value loss: one number per token, neither masked nor averaged.

B sequences, T tokens; column t speaks about choosing token t. Every function raises ValueError if the shapes differ
or a number is outside its range. The first argument is the only input with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.kl import MAX_LOG_RATIO, kl_k3
from minirlhf.losses.masking import check_same_shape


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
        clip_eps:      > 0, half-width of the ratio's trust region; 1 or more sets no lower bound.
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


def ppo_value_loss(values: Tensor, *, old_values: Tensor, returns: Tensor, clip_eps: float | None = 0.2) -> Tensor:
    """0.5 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) -> [B, T] in squared score units.

    From the code that Schulman et al. published with their paper of 2017. The maximum is pessimistic, like the minimum
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
