"""Losses against given tokens. B sequences, T tokens; column t speaks about token t."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logps: Tensor) -> Tensor:
    """-log p of the token that came -> [B, T] nats, to be averaged over the response with `masked_mean`.

    The maximum-likelihood loss of supervised fine-tuning. Not the entropy, which averages over all tokens.

    Args:
        logps: [B, T] nats, from `token_logps` or a policy's forward.
    """
    return -logps
