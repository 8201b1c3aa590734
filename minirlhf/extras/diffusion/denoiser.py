"""A small U-Net for pictures, with attention where they are smallest.   B pictures, C channels.

Ho et al. 2020, arXiv:2006.11239, appendix B; level and label scale and shift every block, as in Dhariwal & Nichol 2021,
arXiv:2105.05233. The U-Net works on 2 x 2 pixels at once: at 16 x 16, full resolution costs four times as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.errors import InputError, check_range

FREQUENCIES = 16  # of a level's features
GROUPS = 8  # of channels that are normalised together


@dataclass(frozen=True)
class DenoiserConfig:
    """The sizes of a denoiser."""

    size: int = 16  # [pixels] height and width of a picture
    labels: int = 15  # [labels] label 0, no condition, included
    channels: int = 32  # [channels] at half resolution; twice as many at a quarter
    schedule: str = "cosine"  # [-] noise levels of its training

    def __post_init__(self) -> None:
        check_range(self, "size", "labels", "channels", least=1, most=4096)
        if self.size % 4 or self.channels % GROUPS:
            raise InputError(
                f"DenoiserConfig: size must be a multiple of 4 and channels of {GROUPS}, got {self.size} and "
                f"{self.channels}"
            )


class Denoiser(nn.Module):
    """v of pictures; see `chain.py`."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config, C = config, config.channels
        self.label = nn.Embedding(config.labels, C)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, C), nn.SiLU(), nn.Linear(C, C))
        self.first = nn.Conv2d(4, C, 3, padding=1)
        self.down = Block(C, C, C)
        self.smaller = nn.Conv2d(C, 2 * C, 2, stride=2)
        self.middle, self.attention, self.middle_too = Block(2 * C, 2 * C, C), Attention(2 * C), Block(2 * C, 2 * C, C)
        self.larger = nn.ConvTranspose2d(2 * C, C, 2, stride=2)
        self.up = Block(2 * C, C, C)
        self.last = nn.Conv2d(C, 4, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """x [B, 1, H, W], level [B] in [0, 1], label [B] int64 -> v [B, 1, H, W].

        Raises: InputError for pictures of another mode or size.
        """
        size = self.config.size
        if x.shape[1:] != (1, size, size) or not x.is_floating_point():
            found = f"{list(x.shape)} of {x.dtype}"
            raise InputError(f"Denoiser: needed grey pictures [B, 1, {size}, {size}] of floats, got {found}")
        condition = F.silu(self.level(level_features(level)) + self.label(label))
        before = self.down(self.first(F.pixel_unshuffle(x, 2)), condition)
        small = self.middle(self.smaller(before), condition)
        small = self.middle_too(self.attention(small), condition)
        after = self.up(torch.cat([self.larger(small), before], 1), condition)
        return F.pixel_shuffle(self.last(F.silu(after)), 2)


class Block(nn.Module):
    """Two convolutions beside a shortcut; the condition scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm_in, self.conv_in = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, C, H, W], condition [B, D] -> [B, C', H, W]."""
        shift, scale = self.modulation(condition)[..., None, None].chunk(2, 1)
        hidden = self.norm_out(self.conv_in(F.silu(self.norm_in(x)))) * (1 + scale) + shift
        return self.shortcut(x) + self.conv_out(F.silu(hidden))


class Attention(nn.Module):
    """Every place reads all places, beside a shortcut. One head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C, H, W]."""
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed).transpose(1, 2).unflatten(-1, x.shape[2:])


def level_features(level: Tensor) -> Tensor:
    """Waves of the angle arccos(sqrt(level)), from 0 (clean) to pi / 2 (noise) -> [B, 2 * FREQUENCIES]."""
    angle = torch.atan2((1 - level).clamp(min=0).sqrt(), level.sqrt())
    waves = angle[:, None] * torch.logspace(0, math.log10(100), FREQUENCIES, device=level.device, dtype=level.dtype)
    return torch.cat([waves.sin(), waves.cos()], -1)
