"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and ways to use them beyond the context trained for.

The E numbers of a head form E / 2 pairs. Each pair turns by a fixed angle per token, its speed: the first pair turns
fast, the last pair slowly.
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
def rope_tables(
    config: ModelConfig, layer_type: str, length: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [max_position_embeddings, E] each, for layers of one type.

    Cached per config and not a buffer, so that `model.to(bfloat16)` cannot round them. `length` is the longest text of
    the batch and counts for rope_type "dynamic" only: beyond the context trained for, a result then depends on the
    batch, as in transformers.
    """
    with torch.inference_mode(False):  # the cached tables must work in training too
        speeds, factor = frequencies(config, layer_type, length)
        angles = torch.arange(config.max_position_embeddings)[:, None] * speeds
        angles = torch.cat((angles, angles), dim=-1)
        return (factor * angles.cos()).float().to(device), (factor * angles.sin()).float().to(device)


def table_length(config: ModelConfig, needed: int) -> int | None:
    """The `length` of `rope_tables` for a text of `needed` tokens: None if the tables do not depend on it."""
    if config.rope_type != "dynamic" or needed <= original_context(config):
        return None
    return needed


def original_context(config: ModelConfig) -> int:
    """Tokens of the context trained for."""
    return config.rope_original_context or config.max_position_embeddings


def frequencies(config: ModelConfig, layer_type: str, length: int | None) -> tuple[Tensor, float]:
    """The speed of each pair in radians per token, [E / 2] in float64, and the factor on cos and sin."""
    E = config.head_width
    exponents = torch.arange(0, E, 2, dtype=torch.float64) / E
    if layer_type == SLIDING and config.rope_local_theta is not None:
        return config.rope_local_theta**-exponents, 1.0
    theta = config.rope_theta
    if config.rope_type == "dynamic" and length is not None:
        # NTK-aware scaling: slow pairs become slower, the more so the longer the text; fast pairs keep their speed
        stretch = config.rope_factor * length / original_context(config) - (config.rope_factor - 1)
        return (theta * stretch ** (E / (E - 2))) ** -exponents, 1.0
    speeds = theta**-exponents
    if config.rope_type in ("default", "dynamic"):
        return speeds, 1.0
    if config.rope_type == "linear":  # Chen et al. 2023, arXiv:2306.15595: all pairs slower
        return speeds / config.rope_factor, 1.0
    return _llama3(config, speeds) if config.rope_type == "llama3" else _yarn(config, speeds, theta)


def _llama3(config: ModelConfig, speeds: Tensor) -> tuple[Tensor, float]:
    """Fast pairs keep their speed, slow pairs become slower, pairs between get a mixture (Llama 3.1)."""
    turns = original_context(config) * speeds / (2 * math.pi)  # of each pair within the context trained for
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    unchanged = ((turns - low) / (high - low)).clamp(0, 1)
    return unchanged * speeds + (1 - unchanged) * speeds / config.rope_factor, 1.0


def _yarn(config: ModelConfig, speeds: Tensor, theta: float) -> tuple[Tensor, float]:
    """As llama3, but the mixture is linear in the pair's number (Peng et al. 2023, arXiv:2309.00071, section 3.2)."""
    E, context = config.head_width, original_context(config)

    def pair_with(turns: float) -> float:
        """The number of the pair that makes so many turns within the context trained for."""
        return E * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(config.rope_beta_fast), pair_with(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, E - 1)
    slowed = ((torch.arange(E // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
    factor = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1
    return (1 - slowed) * speeds + slowed * speeds / config.rope_factor, factor
