"""Rotary positions (Su et al. 2021, arXiv:2104.09864).

The E numbers of a head form E / 2 pairs. Each pair turns by a fixed angle per token, its speed: the first pair turns
fast, the last pair slowly.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from minirlhf.model.config import SLIDING, ModelConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + E / 2) of [B, T, heads, E] by the angles of their positions, as `rope_tables` gives them.

    The other number of each pair stands half a turn of the list away.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        from minirlhf.model.elementwise import Rotation  # here, so that the core loads no leaf

        return Rotation.apply(x, cos, sin)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def rope_tables(config: ModelConfig, layer_type: str, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of the first `columns` positions or more, [rows, E] each, for layers of one type.

    The first half of the sines has a minus sign: the first number of a pair becomes a cos - b sin, the second one
    b cos + a sin.

    A context of a million tokens costs nothing until a text is long: the number of rows doubles as texts grow.
    """
    rows = min(max(1024, 1 << (columns - 1).bit_length()), config.max_position_embeddings)
    return _tables(config, layer_type, rows, table_length(config, columns), device)


@lru_cache(maxsize=32)
def _tables(
    config: ModelConfig, layer_type: str, rows: int, length: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cached per config and not a buffer, so that `model.to(bfloat16)` cannot round the tables.

    Only rope_type "dynamic" reads `length`, the longest text of the batch. So beyond the context trained for, its
    results depend on the batch, as in transformers.
    """
    with torch.inference_mode(False):  # the cached tables must work in training too
        speeds, factor = frequencies(config, layer_type, length)
        angles = torch.arange(rows)[:, None] * speeds
        cos, sin = (factor * angles.cos()).float(), (factor * angles.sin()).float()
        return torch.cat((cos, cos), dim=-1).to(device), torch.cat((-sin, sin), dim=-1).to(device)


def table_length(config: ModelConfig, needed: int) -> int | None:
    """The `length` of `_tables` for a text of `needed` tokens: None if the tables do not depend on it."""
    if config.rope_type != "dynamic":
        return None
    from minirlhf.model.rope_scaling import original_context

    return needed if needed > original_context(config) else None


def frequencies(config: ModelConfig, layer_type: str, length: int | None) -> tuple[Tensor, float]:
    """The speed of each pair in radians per token, [E / 2] in float64, and the factor on cos and sin."""
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width
    if layer_type == SLIDING and config.rope_local_theta is not None:
        return config.rope_local_theta**-exponents, 1.0
    if config.rope_type == "default":
        return config.rope_theta**-exponents, 1.0
    from minirlhf.model.rope_scaling import scaled_frequencies

    return scaled_frequencies(config, exponents, length)
