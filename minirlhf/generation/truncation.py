"""Truncated sampling: among the k likeliest tokens, or among the likeliest tokens of a given mass (nucleus sampling).

Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751. B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

CANDIDATES = 1024  # tokens among which a nucleus is looked for first, because sorting a large vocabulary is slow


def truncate(logps: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Set all but the likeliest tokens to -inf and renormalise -> (logps [B, V], mass_kept [B]).

    Of equally likely tokens, the tokens with the lowest ids are kept.
    """
    B, V = logps.shape
    if (top_k <= 0 or top_k >= V) and top_p >= 1:
        return logps, torch.ones(B, dtype=logps.dtype, device=logps.device)
    number, least = kept(logps, top_k if 0 < top_k < V else V, top_p if top_p < 1 else torch.inf)
    above, equal = logps > least, logps == least
    keep = above | equal & (equal.cumsum(-1) <= number - above.sum(-1, keepdim=True))
    logps = logps.masked_fill(~keep, -torch.inf)
    log_mass = logps.logsumexp(-1)
    return logps - log_mass[:, None], log_mass.exp()


def kept(logps: Tensor, most: int, mass: float) -> tuple[Tensor, Tensor]:
    """-> (number of tokens to keep, at most `most`; the log-prob of the last of them), both [B, 1].

    On a GPU all tokens are candidates, because the host would wait for the answer that a few are enough.
    """
    candidates = min(most, CANDIDATES) if mass < 1 and logps.device.type == "cpu" else most
    while True:
        ordered = logps.topk(candidates).values
        probs = ordered.exp()
        before = probs.cumsum(-1) - probs  # the mass of the likelier tokens
        number = (before < mass).sum(-1, keepdim=True).clamp(min=1)
        if candidates == most or not bool((number == candidates).any()):
            return number, ordered.gather(-1, number - 1)
        candidates = most
