"""A small diffusion transformer: patches of a picture are its tokens, level and label modulate its norms.

DiT with adaLN-zero: Peebles & Xie 2022, arXiv:2212.09748.   B pictures, P patches, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.errors import InputError, check_range


@dataclass(frozen=True)
class DenoiserConfig:
    """The sizes of a denoiser."""

    size: int = 16  # [pixels] height and width of a picture
    labels: int = 15  # [labels] label 0, no condition, included
    patch: int = 4  # [pixels] height and width of a patch
    width: int = 96  # [numbers] of a token
    layers: int = 3  # [blocks]
    heads: int = 4  # [heads] of attention

    def __post_init__(self) -> None:
        check_range(self, "size", "labels", "patch", "width", "layers", "heads", least=1, most=4096)
        if self.size % self.patch or self.width % self.heads:
            raise InputError(
                f"DenoiserConfig: patch must divide size and heads must divide width, got size {self.size}, patch "
                f"{self.patch}, width {self.width}, heads {self.heads}"
            )


class Denoiser(nn.Module):
    """v of pictures; see `chain.py`."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config, D = config, config.width
        patches = (config.size // config.patch) ** 2
        self.embed = nn.Linear(config.patch**2, D)
        self.position = nn.Parameter(0.02 * torch.randn(patches, D))
        self.label = nn.Embedding(config.labels, D)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, D), nn.SiLU(), nn.Linear(D, D))
        self.blocks = nn.ModuleList(Block(D, config.heads) for _ in range(config.layers))
        self.last_modulation = nn.Linear(D, 2 * D)
        self.out = nn.Linear(D, config.patch**2)
        for layer in (self.out, self.last_modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)  # every block starts as the identity
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """x [B, 1, H, W], level [B] in [0, 1], label [B] int64 -> v [B, 1, H, W].

        Raises: InputError for pictures of another mode or size.
        """
        size, patch = self.config.size, self.config.patch
        if x.shape[1:] != (1, size, size):
            raise InputError(f"Denoiser: needed grey pictures [B, 1, {size}, {size}], got {list(x.shape)}")
        tokens = self.embed(F.unfold(x, patch, stride=patch).transpose(1, 2)) + self.position
        condition = F.silu(self.level(level_features(level)) + self.label(label))
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.last_modulation(condition)[:, None].chunk(2, -1)
        patches = self.out(norm(tokens) * (1 + scale) + shift).transpose(1, 2)
        return F.fold(patches, size, patch, stride=patch)


class Block(nn.Module):
    """Attention and MLP, each behind a norm whose shift, scale and gate come from the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, P, D], condition [B, D] -> [B, P, D]."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(condition)[:, None].chunk(6, -1)
        q, k, v = self.qkv(norm(x) * (1 + scale) + shift).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + gate * self.attention_out(mixed.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.mlp_in(norm(x) * (1 + scale_mlp) + shift_mlp))
        return x + gate_mlp * self.mlp_out(hidden)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


FREQUENCIES = 16


def level_features(level: Tensor) -> Tensor:
    """Waves of the angle arccos(sqrt(level)), from 0 (clean) to pi / 2 (noise) -> [B, 2 * FREQUENCIES]."""
    angle = torch.atan2((1 - level).clamp(min=0).sqrt(), level.sqrt())
    waves = angle[:, None] * torch.logspace(0, math.log10(100), FREQUENCIES, device=level.device, dtype=level.dtype)
    return torch.cat([waves.sin(), waves.cos()], -1)
