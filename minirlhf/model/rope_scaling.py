"""Ways to use rotary positions beyond the context trained for. They change the speeds of the pairs; see `rope.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minirlhf.model.config import ModelConfig


def original_context(config: ModelConfig) -> int:
    """The number of tokens in the context that the model was trained for."""
    return config.rope_original_context or config.max_position_embeddings


def scaled_frequencies(config: ModelConfig, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
    """The speeds [E / 2] under a rope_type other than "default", and the factor on cos and sin.

    Args:
        exponents: [E / 2] float64; the speed of a pair without scaling is theta ** -exponent.
        length:    see `rope._tables`.
    """
    E, theta = config.head_width, config.rope_theta
    if config.rope_type == "dynamic" and length is not None:
        # NTK-aware scaling: a longer text makes slow pairs slower; fast pairs keep their speed
        stretch = config.rope_factor * length / original_context(config) - (config.rope_factor - 1)
        return (theta * stretch ** (E / (E - 2))) ** -exponents, 1.0
    speeds = theta**-exponents
    if config.rope_type == "dynamic":
        return speeds, 1.0
    if config.rope_type == "linear":  # Chen et al. 2023, arXiv:2306.15595: all pairs slower
        return speeds / config.rope_factor, 1.0
    return _llama3(config, speeds) if config.rope_type == "llama3" else _yarn(config, speeds)


def _llama3(config: ModelConfig, speeds: Tensor) -> tuple[Tensor, float]:
    """Fast pairs keep their speed, slow pairs become slower, pairs between get a mixture (Llama 3.1)."""
    turns = original_context(config) * speeds / (2 * math.pi)  # of each pair within the context trained for
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    unchanged = ((turns - low) / (high - low)).clamp(0, 1)
    return unchanged * speeds + (1 - unchanged) * speeds / config.rope_factor, 1.0


def _yarn(config: ModelConfig, speeds: Tensor) -> tuple[Tensor, float]:
    """As llama3, but the mixture is linear in the pair's number (Peng et al. 2023, arXiv:2309.00071, section 3.2)."""
    E, context = config.head_width, original_context(config)

    def pair_with(turns: float) -> float:
        """The number of the pair that turns `turns` times within the context trained for."""
        return E * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_with(config.rope_beta_fast), pair_with(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, E - 1)
    slowed = ((torch.arange(E // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
    factor = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1
    return (1 - slowed) * speeds + slowed * speeds / config.rope_factor, factor
