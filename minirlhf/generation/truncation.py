"""Truncated sampling: among the k likeliest tokens, or among the likeliest tokens of a given mass (nucleus sampling).

Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751. B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncate(logps: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Set all but the likeliest tokens to -inf and renormalise -> (logps [B, V], mass_kept [B])."""
    B, V = logps.shape
    if (top_k <= 0 or top_k >= V) and top_p >= 1:
        return logps, torch.ones(B, dtype=logps.dtype, device=logps.device)
    ordered, order = logps.sort(dim=-1, descending=True, stable=True)
    probs = ordered.exp()
    keep = probs.cumsum(-1) - probs < top_p  # the mass before a token has not reached p yet
    if 0 < top_k < V:
        keep[:, top_k:] = False
    keep[:, 0] = True
    keep = torch.zeros_like(keep).scatter(-1, order, keep)
    logps = logps.masked_fill(~keep, -torch.inf)
    log_mass = logps.logsumexp(-1)
    return logps - log_mass[:, None], log_mass.exp()
