"""Functions that keep numbers in range: the norm of each family, and the soft cap on logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.model.config import ModelConfig


class PlusOneRMSNorm(nn.RMSNorm):
    """RMSNorm that multiplies by 1 + weight (Gemma): a weight of 0 changes nothing."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).to(x.dtype)


NORMS = {"rms": nn.RMSNorm, "rms_plus_one": PlusOneRMSNorm, "layer": nn.LayerNorm}


def norm(config: ModelConfig, width: int | None = None, used: bool = True) -> nn.Module:
    """The family's norm over `width` numbers (default: hidden_size); the identity if the family does not use it."""
    return NORMS[config.norm](width or config.hidden_size, config.rms_norm_eps) if used else nn.Identity()


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap): nearly x where |x| is small, and always within +-cap. None: x itself."""
    return x if cap is None else cap * torch.tanh(x / cap)
