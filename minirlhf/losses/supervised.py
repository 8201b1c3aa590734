"""Losses against given tokens. B sequences, T tokens; column t speaks about token t."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logps: Tensor) -> Tensor:
    """-log p of the given token -> [B, T] nats, to be averaged over the response with `masked_mean`.

    The maximum-likelihood loss of supervised fine-tuning. It is not the entropy: the entropy is a mean over V.

    Args:
        logps: [B, T] nats, from `token_logps` or a policy's forward.
    """
    return -logps


def dft_loss(logps: Tensor) -> Tensor:
    """-sg(p) log p -> [B, T] nats: maximum likelihood without its factor 1 / p.

    Wu et al. 2025, arXiv:2508.05629, Eq. 9 (DFT): the gradient of -log p is a policy gradient with the reward 1 / p
    for the given token, so unlikely tokens dominate. The factor p gives every token the same weight.

    Args:   logps: [B, T] nats, with gradient.
    """
    return -logps.detach().exp() * logps
