"""The norm of each family, and the soft cap on logits: both keep numbers in range."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minirlhf.model.config import ModelConfig


def norm(config: ModelConfig, width: int | None = None, used: bool = True) -> nn.Module:
    """The family's norm over `width` numbers (default: hidden_size); the identity if the family does not use it."""
    from minirlhf.model.rms_norm import PlusOneRMSNorm, RMSNorm  # here, so that the core loads no leaf

    kinds = {"rms": RMSNorm, "rms_plus_one": PlusOneRMSNorm, "layer": nn.LayerNorm}
    return kinds[config.norm](width or config.hidden_size, config.rms_norm_eps) if used else nn.Identity()


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap): nearly x where |x| is small, and always within +-cap. None: x itself."""
    return x if cap is None else cap * torch.tanh(x / cap)
