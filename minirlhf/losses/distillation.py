"""Losses that compare a student with its teacher. B sequences, T tokens, V vocabulary; column t speaks about token t.

Every function raises ValueError if the shapes differ, a mask is not bool or a number is outside its range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minirlhf.losses.logprobs import _check_temperature
from minirlhf.losses.masking import _widen, check_mask, predicted_tokens
from minirlhf.losses.tiles import chunks_of


def generalised_js(student_logps: Tensor, teacher_logps: Tensor, *, beta: float) -> Tensor:
    """Divergence of two distributions over V -> [...] nats, the sum over the last axis.

    beta KL(teacher || m) + (1 - beta) KL(student || m),  m = beta teacher + (1 - beta) student
    Agarwal et al. 2023, arXiv:2306.13649, Eq. 1 (GKD). The paper defines the two ends separately: beta 0 is the forward
    KL(teacher || student) and covers all modes; beta 1 is the reverse KL(student || teacher) and seeks a single mode.

    Args:
        student_logps, teacher_logps: [..., V] finite log-probs. Pass the teacher's without gradient.
        beta: in [0, 1].
    """
    if student_logps.shape != teacher_logps.shape or not 0 <= beta <= 1:
        raise ValueError(
            f"generalised_js: needed two tensors of one shape and beta in [0, 1], got {tuple(student_logps.shape)}, "
            f"{tuple(teacher_logps.shape)} and {beta}; student and teacher must share a tokenizer"
        )
    if beta == 0:
        return _kl(teacher_logps, student_logps)
    if beta == 1:
        return _kl(student_logps, teacher_logps)
    mixture = torch.logaddexp(teacher_logps + math.log(beta), student_logps + math.log1p(-beta))
    return beta * _kl(teacher_logps, mixture) + (1 - beta) * _kl(student_logps, mixture)


def linear_distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    *,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    mask: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> Tensor:
    """`generalised_js` of two language-model heads at every token of the mask -> [B, T] nats, 0 elsewhere.

    It never holds [B, T, V]: it takes tokens in chunks and computes each chunk again in the backward pass. Memory is
    O(chunk * V).

    Args:
        hidden, teacher_hidden: [B, T, D], [B, T, D'] in model order.   weight, teacher_weight: [V, D], [V, D'].
        mask:        [B, T] bool, index rule.   beta: see `generalised_js`.   temperature: > 0, divides both logits.
        softcap, teacher_softcap: c of logits c tanh(z / c), as in Gemma 2, or None.
    """
    if weight.shape[0] != teacher_weight.shape[0] or hidden.shape[:2] != teacher_hidden.shape[:2]:
        raise ValueError(
            f"linear_distillation_loss: needed one vocabulary and one batch, got weights {tuple(weight.shape)} and "
            f"{tuple(teacher_weight.shape)}, hidden {tuple(hidden.shape)} and {tuple(teacher_hidden.shape)}"
        )
    check_mask("linear_distillation_loss", mask, first_column=hidden[..., 0])
    _check_temperature("linear_distillation_loss", temperature)

    def divergence(h: Tensor, teacher_h: Tensor) -> Tensor:
        heads = (h, weight, softcap), (teacher_h.detach(), teacher_weight.detach(), teacher_softcap)
        logps = [(_capped(_widen(F.linear(x, w)), cap) / temperature).log_softmax(-1) for x, w, cap in heads]
        return generalised_js(*logps, beta=beta)

    tokens, positions = predicted_tokens(mask)
    h, teacher_h = hidden[positions], teacher_hidden[positions]
    parts = chunks_of(len(h), weight.shape[0]) or [slice(0, 0)]
    losses = torch.cat([checkpoint(divergence, h[part], teacher_h[part], use_reentrant=False) for part in parts])
    return torch.zeros(mask.shape, dtype=losses.dtype, device=losses.device).masked_scatter(tokens, losses)


def minillm_advantages(logps: Tensor, *, teacher_logps: Tensor, mask: Tensor) -> Tensor:
    """Mean of (teacher_logps - logps) over all later tokens -> [B, T] nats, detached, 0 at the last token.

    Gu et al. 2023, arXiv:2306.08543, Eq. 6 and 8 (MiniLLM): an exact reverse KL at each token (`generalised_js`,
    beta 1) leaves out a part of the gradient of the sequence's reverse KL. The result is that part, divided by length.

    Args:   logps, teacher_logps: [B, T] nats on the student's own tokens.   mask: [B, T] bool.
    """
    check_mask("minillm_advantages", mask, logps=logps, teacher_logps=teacher_logps)
    gap = torch.where(mask, (teacher_logps - logps).detach(), 0)
    later = gap.flip(-1).cumsum(-1).flip(-1) - gap
    tokens_left = mask.flip(-1).cumsum(-1).flip(-1) - mask.long()
    return torch.where(mask, later / tokens_left.clamp(min=1), 0)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)
