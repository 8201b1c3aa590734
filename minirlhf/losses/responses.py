"""Token log-probs of a response, reduced to one number per response. B responses or pairs, T tokens.

The losses of dpo.py, reference_free.py and unpaired.py take these numbers. Every function raises ValueError if the
shapes differ or a mask is not bool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.logprobs import _check_temperature, autocast_dtype
from minirlhf.losses.masking import check_mask, check_same_shape, shift_right
from minirlhf.losses.tiles import chunks_of, logits


def sum_logps(logps: Tensor, mask: Tensor) -> Tensor:
    """log pi(y | x): [B, T] nats -> [B] nats, summed over the tokens of the response."""
    check_mask("sum_logps", mask, logps=logps)
    return torch.where(mask, logps, 0).sum(-1)


def mean_logps(logps: Tensor, mask: Tensor) -> Tensor:
    """`sum_logps` / number of tokens: [B, T] nats -> [B] nats per token; 0 for an empty response.

    DPO with means (Meng et al. 2024, arXiv:2405.14734, Table 4) does not favour long answers. Its optimum is no longer
    pi_ref exp(reward / beta), because beta acts as beta / length.
    """
    return sum_logps(logps, mask) / mask.sum(-1).clamp(min=1)


def desensitised_logps(logps: Tensor, mask: Tensor, *, other_mask: Tensor, alpha: float) -> Tensor:
    """Sum over the common length of a pair's two responses, plus alpha times the rest -> [B] nats.

    Liu et al. 2024, arXiv:2409.06411, Eq. 10 (LD-DPO): alpha 1 is DPO, alpha 0 ignores the tail of the longer response.

    Args:   logps, mask: [B, T] of one side.   other_mask: [B, T'] of the other side.   alpha: in [0, 1].
    Raises: ValueError if alpha is outside [0, 1].
    """
    check_mask("desensitised_logps", mask, logps=logps)
    if not 0 <= alpha <= 1 or len(mask) != len(other_mask):
        raise ValueError(
            f"desensitised_logps: needed alpha in [0, 1] and masks of equal row counts, got {alpha}, {len(mask)} and "
            f"{len(other_mask)}"
        )
    common = torch.minimum(mask.sum(-1), other_mask.sum(-1))
    head = mask & (mask.cumsum(-1) <= common[:, None])
    return sum_logps(logps, head) + alpha * sum_logps(logps, mask & ~head)


def wpo_weights(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_expected: Tensor,
    rejected_expected: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
) -> Tensor:
    """w(chosen) w(rejected) -> [B], detached, at most 1: large if the policy could have written this pair itself.

    w(y) = exp(mean over t of (log pi(y_t) - log sum_v pi(v)^2)).   Zhou et al. 2024, arXiv:2406.11827, Eq. 3 and 5
    (WPO with sampled alignment: a pair sampled from the policy has weight about 1, at low and at high entropy).

    Args:
        chosen_logps, rejected_logps:       [B, T] nats.   chosen_mask, rejected_mask: [B, T] bool.
        chosen_expected, rejected_expected: [B, T] nats, log sum_v pi(v)^2 at each token: `linear_log_collision`.
    """
    check_same_shape("wpo_weights", chosen_logps=chosen_logps, chosen_expected=chosen_expected)
    check_same_shape("wpo_weights", rejected_logps=rejected_logps, rejected_expected=rejected_expected)
    chosen = mean_logps(chosen_logps - chosen_expected, chosen_mask)
    rejected = mean_logps(rejected_logps - rejected_expected, rejected_mask)
    return torch.exp(chosen + rejected).detach().clamp(max=1)


@torch.no_grad()
def linear_log_collision(
    hidden: Tensor, weight: Tensor, temperature: float = 1.0, softcap: float | None = None
) -> Tensor:
    """log sum_v p(v)^2 of the distribution each token was drawn from -> [B, T] nats, column 0 is 0; without gradient.

    This is the log of the mean probability of a token drawn from p; `wpo_weights` subtracts it. Computed in chunks.

    Args:
        hidden:      [B, T, D] in model order.   weight: [V, D].
        temperature: > 0.   softcap: c of logits c tanh(z / c), or None.
    """
    _check_temperature("linear_log_collision", temperature)
    if hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear_log_collision: needed hidden [B, T, D] and weight [V, D], got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    rows = hidden.flatten(0, 1).to(autocast_dtype(hidden))
    weight = weight.to(rows.dtype)
    parts = [
        logits(rows[part], weight, None, slice(None), softcap, temperature).log_softmax(-1).mul_(2).logsumexp(-1)
        for part in chunks_of(len(rows), weight.shape[0]) or [slice(0, 0)]
    ]
    return shift_right(torch.cat(parts).view(hidden.shape[:2]))
