"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and the ways of making them reach further than trained for.

A pair of numbers of a head turns by one angle per token: E / 2 pairs, from fast to slow.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from minirlhf.model.config import SLIDING, ModelConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + E / 2) of [B, T, heads, E] by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


@lru_cache(maxsize=16)
def rope_tables(config: ModelConfig, kind: str, length: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [max_position_embeddings, E] each, for one kind of layer.

    Made once for all models of a shape, and no part of them: `model.to(bfloat16)` must not round positions.
    length: of the longest text in the batch, where the angles depend on it (dynamic), as in other implementations:
    beyond the context trained for, a completion then depends on its batch.
    """
    with torch.inference_mode(False):  # whoever asks first, training may use them too
        speeds, size = frequencies(config, kind, length)
        angles = torch.arange(config.max_position_embeddings)[:, None] * speeds
        angles = torch.cat((angles, angles), dim=-1)
        return (size * angles.cos()).float().to(device), (size * angles.sin()).float().to(device)


def table_length(config: ModelConfig, needed: int) -> int | None:
    """The `length` of `rope_tables` for a text of `needed` tokens: None wherever it does not matter."""
    if config.rope_type != "dynamic" or needed <= original_context(config):
        return None
    return needed


def original_context(config: ModelConfig) -> int:
    return config.rope_original_context or config.max_position_embeddings


def frequencies(config: ModelConfig, kind: str, length: int | None) -> tuple[Tensor, float]:
    """Radians per token of each pair, [E / 2] in float64, and what cos and sin are multiplied with."""
    E = config.head_width
    local = kind == SLIDING and config.rope_local_theta is not None
    theta = config.rope_local_theta if local else config.rope_theta
    exponents = torch.arange(0, E, 2, dtype=torch.float64) / E
    if local:
        return theta**-exponents, 1.0
    if config.rope_type == "dynamic" and length is not None:
        # NTK-aware scaling: as long as the text needs it, the slow waves become slower and the fast ones stay
        stretch = config.rope_factor * length / original_context(config) - (config.rope_factor - 1)
        return (theta * stretch ** (E / (E - 2))) ** -exponents, 1.0
    speeds = theta**-exponents
    if config.rope_type in ("default", "dynamic"):
        return speeds, 1.0
    if config.rope_type == "linear":  # Chen et al. 2023, arXiv:2306.15595: all waves slower
        return speeds / config.rope_factor, 1.0
    return _llama3(config, speeds) if config.rope_type == "llama3" else _yarn(config, speeds, theta)


def _llama3(config: ModelConfig, speeds: Tensor) -> tuple[Tensor, float]:
    """Short waves as they are, long ones slower, between the two a mixture (Llama 3.1)."""
    turns = original_context(config) * speeds / (2 * math.pi)  # of a wave, within the context trained for
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * speeds + (1 - kept) * speeds / config.rope_factor, 1.0


def _yarn(config: ModelConfig, speeds: Tensor, theta: float) -> tuple[Tensor, float]:
    """The same idea with a ramp over pairs instead of turns (Peng et al. 2023, arXiv:2309.00071, section 3.2)."""
    E, context = config.head_width, original_context(config)

    def pair_with(turns: float) -> float:
        return E * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(config.rope_beta_fast), pair_with(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, E - 1)
    slowed = ((torch.arange(E // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
    size = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1
    return (1 - slowed) * speeds + slowed * speeds / config.rope_factor, size
