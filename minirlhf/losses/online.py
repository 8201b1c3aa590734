"""Losses of pairs from online training: the policy writes, a judge ranks. B pairs or rows, T tokens.

Every function raises ValueError if the shapes differ, the mask is not bool or a coefficient is negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import check_mask, check_same_shape


def xpo_bonus(logps: Tensor, *, mask: Tensor, alpha: float) -> Tensor:
    """alpha log pi(y') -> [B], added to DPO's loss. It pushes the reference's completions down: the policy explores.

    Xie et al. 2024, arXiv:2405.21046, Eq. 6 (XPO). The policy and the reference write one completion each.

    Args:   logps: [B, T] nats of the policy on the *reference's* completions, with gradient.   alpha: >= 0.
    """
    check_mask("xpo_bonus", mask, logps=logps)
    if not alpha >= 0:
        raise ValueError(f"xpo_bonus: alpha must be at least 0, got {alpha}")
    return alpha * torch.where(mask, logps, 0).sum(-1)


def nash_md_loss(logps: Tensor, *, ref_logps: Tensor, mask: Tensor, win_prob: Tensor, beta: float) -> Tensor:
    """-((P(y beats y') - 1/2) log pi(y) - beta (sg(d) log pi(y))) -> [B]; d is the log-ratio of each token.

    Munos et al. 2023, arXiv:2312.00886, section 7 (Nash-MD-PG): y comes from the policy, y' from a geometric mixture
    of policy and reference. The gradient of the KL to the reference is a score-function gradient, token by token.

    Args:
        logps:    [B, T] nats of the policy on its own completion, with gradient.   ref_logps, mask: [B, T].
        win_prob: [B] in [0, 1], from a judge or sigmoid(score - score').   beta: >= 0.
    """
    check_mask("nash_md_loss", mask, logps=logps, ref_logps=ref_logps)
    check_same_shape("nash_md_loss", win_prob=win_prob, rows=mask[:, 0])
    if not beta >= 0:
        raise ValueError(f"nash_md_loss: beta must be at least 0, got {beta}")
    logps = torch.where(mask, logps, 0)
    gap = torch.where(mask, (logps - ref_logps).detach(), 0)
    score = (win_prob.to(logps.dtype) - 0.5) * logps.sum(-1)
    return -(score - beta * (gap * logps).sum(-1))
