"""The patch encoder: an image -> its features, one for each patch, in the width of the decoder.

Each patch is a token of a small transformer without a causal mask (Dosovitskiy et al. 2021, arXiv:2010.11929). A
projector of two layers takes its outputs to the width of the decoder (Liu et al. 2023, arXiv:2310.03744).

N images, S pixels a side, P patches of an image, D width of the encoder, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.errors import InputError, check_range

CHANNELS = 3  # red, green, blue


@dataclass(frozen=True)
class VisionConfig:
    image_size: int = 32  # [pixels] a side; images are square
    patch_size: int = 8  # [pixels] side of a patch; a patch is one token of the prompt
    hidden_size: int = 64  # [numbers] width of the encoder
    num_hidden_layers: int = 2  # [blocks] of attention and MLP
    num_attention_heads: int = 4  # [heads]

    def __post_init__(self) -> None:
        check_range(self, "image_size", "patch_size", least=1, most=4096)
        check_range(self, "hidden_size", "num_hidden_layers", "num_attention_heads", least=1, most=2**14)
        for name, part in (("image_size", "patch_size"), ("hidden_size", "num_attention_heads")):
            whole, size = getattr(self, name), getattr(self, part)
            if whole % size:
                raise InputError(f"VisionConfig: {name} must be a multiple of {part}, got {whole} and {size}")

    @property
    def patches(self) -> int:
        """The number of patches of an image; each patch is a token."""
        return (self.image_size // self.patch_size) ** 2


class Block(nn.Module):
    """Attention in both directions and an MLP, each added to the residual stream: [N, P, D] -> [N, P, D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        D, self.heads = config.hidden_size, config.num_attention_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv_proj, self.o_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up_proj, self.down_proj = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, H, P, D / H] each
        x = x + self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x))))


class PatchEncoder(nn.Module):
    """Images [N, 3, S, S] of bytes -> features [N, P, width], the patches row by row."""

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.config, D = config, config.hidden_size
        self.patch_proj = nn.Linear(CHANNELS * config.patch_size**2, D)
        self.positions = nn.Parameter(torch.empty(config.patches, D))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm, self.hidden_proj, self.output_proj = nn.LayerNorm(D), nn.Linear(D, width), nn.Linear(width, width)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.output_proj.weight, std=0.02)  # features begin as small as the embeddings of text

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_proj(patches_of(images.to(self.positions.dtype) / 127.5 - 1, self.config.patch_size))
        x = x + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.output_proj(F.gelu(self.hidden_proj(self.norm(x))))


def patches_of(images: Tensor, size: int) -> Tensor:
    """[N, C, S, S] -> [N, P, C size^2], the patches row by row."""
    patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [N, C, rows, size, columns, size]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
