"""Checks of ModelConfig that a plain model does not need: of experts, of layers of two types, of scaled positions."""

from __future__ import annotations

from typing import Any

from minirlhf.errors import InputError, check_range, shown

LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_experts_layers_and_scaling(config: Any) -> None:
    """config: a ModelConfig. Raises: InputError."""
    if 0 < config.num_experts < config.num_experts_per_tok:
        raise InputError(
            f"ModelConfig: num_experts_per_tok must be at most num_experts, got {config.num_experts_per_tok} and "
            f"{config.num_experts}"
        )
    types = config.layer_types
    if types and (len(types) != config.num_hidden_layers or {*types} - LAYER_TYPES):
        raise InputError(
            f"ModelConfig: layer_types must be {config.num_hidden_layers} of full_attention and sliding_attention, got "
            f"{shown(list(types))}"
        )
    if "sliding_attention" in types and config.sliding_window is None:
        raise InputError("ModelConfig: sliding_attention needs a sliding_window, got none; set it")
    if config.rope_type != "default":
        _check_scaling(config)


def _check_scaling(config: Any) -> None:
    """Refuse settings of rotary positions that would divide by zero or turn a pair's order around."""
    check_range(config, "rope_factor", "rope_original_context", least=1, most=2**31)
    check_range(config, "rope_low_freq_factor", "rope_high_freq_factor", above=0, most=1e15)
    check_range(config, "rope_beta_fast", "rope_beta_slow", "rope_attention_factor", above=0, most=1e15)
    check_range(config, "rope_theta", above=1)
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    if config.rope_type == "llama3" and low >= high:
        raise InputError(f"ModelConfig: rope_low_freq_factor must be below rope_high_freq_factor, got {low} and {high}")
    if config.rope_type == "dynamic" and config.head_width < 4:
        raise InputError(f"ModelConfig: rope_type dynamic needs a head_dim of at least 4, got {config.head_width}")
