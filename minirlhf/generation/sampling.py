"""Logits and one uniform number per row -> a token and its log-probability.

A pure function: a completion depends on the weights and its keys, never on its batch. B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row -> (tokens [B], logps [B] nats, mass_kept [B]).

    The token is the first index whose cumulative probability exceeds the uniform. The log-prob belongs to the
    distribution that the token is drawn from: temperature and truncation are included. It is not finite if the logits
    are broken: nan, inf, or -inf for every token. `mass_kept` is the probability mass that truncation left.

    Args:
        logits:      [B, V].   uniforms: [B] in [0, 1).
        temperature: >= 0; 0 takes the largest logit, with log-prob 0, because the choice is certain.
        top_k:       keep the k likeliest tokens; 0 keeps all.
        top_p:       in (0, 1], keep the likeliest tokens until their mass reaches p; 1 keeps all.
    """
    if temperature == 0:
        largest, tokens = logits.max(-1)  # nan if any logit is nan
        return tokens, (largest - largest).to(uniforms.dtype), torch.ones_like(uniforms)  # 0, or nan if not finite
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    mass_kept = torch.ones_like(logits[:, 0])
    if top_k or top_p < 1:
        from minirlhf.generation.truncation import truncate  # here, so that the core loads no leaf

        logits, mass_kept = truncate(logits.log_softmax(-1), top_k, top_p)
    from minirlhf.generation.cumulative import first_exceeding  # here, so that the core loads no leaf

    probs = logits.softmax(-1)
    tokens = first_exceeding(probs, uniforms)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log(), mass_kept
