"""Attention with bounded scores.

B sequences, T tokens, S columns of keys, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.model.norms import softcap


def capped_attention(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, visible: Tensor | None, scale: float, cap: float
) -> Tensor:
    """softmax(cap tanh(scale q k / cap)) v (Gemma 2). No fused kernel computes the cap."""
    k_BHSE, v_BHSE = (x.repeat_interleave(q_BHTE.shape[1] // x.shape[1], dim=1) for x in (k_BKSE, v_BKSE))
    if visible is None:
        visible = torch.ones(q_BHTE.shape[2], k_BHSE.shape[2], dtype=torch.bool, device=q_BHTE.device).tril()
    scores_BHTS = softcap(q_BHTE @ k_BHSE.transpose(2, 3) * scale, cap).masked_fill(~visible, -torch.inf)
    return scores_BHTS.softmax(-1, dtype=torch.float32).to(q_BHTE.dtype) @ v_BHSE
