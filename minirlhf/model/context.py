"""The positions of the tokens in a forward, and the columns that each token may attend to.

B sequences, T tokens of this forward, S columns of keys in use, E head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirlhf.errors import InputError
from minirlhf.model.cache import KVCache
from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.model.rope import rope_tables


class AttentionInputs(NamedTuple):
    """Angles and mask, the same for all layers of one type."""

    cos: Tensor  # [1 or B, T, 1, E]
    sin: Tensor  # [1 or B, T, 1, E]
    visible: Tensor | None  # [1 or B, 1, T, S] bool, True where a token may attend; None: plain causal attention
    packing: Any = None  # of a packed batch, see packing.py
    window: int | None = None  # [tokens] of a packed batch


class ForwardContext(NamedTuple):
    """Made once per forward and read by every layer."""

    positions: Tensor  # [1, T] or, with a cache, [B, T]
    inputs: dict[str, AttentionInputs]  # by layer type
    cache: KVCache | None
    from_start: bool  # no token was cached before: attention needs the keys and values of this forward only
    read: Tensor | None = None  # [n] of the last block: the places of the tokens that are read; None: all

    def read_of(self, x: Tensor) -> Tensor:
        """The tokens that are read: [B, T, D] -> [1, n, D], or x itself if all are."""
        return x if self.read is None else x.flatten(0, 1).index_select(0, self.read)[None]


def forward_context(
    config: ModelConfig, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
) -> ForwardContext:
    """Check a batch, give each token its position, and reserve its column in the cache.

    Raises: InputError if the context is too short, ValueError for a bad mask or a cache that is too small.
    """
    T = input_ids.shape[1]
    columns = T if cache is None else cache.width + T
    if columns > config.max_position_embeddings:
        raise InputError(
            f"Transformer: the context holds {config.max_position_embeddings} tokens, got {columns}; shorten the "
            "prompt or the response, or use a model with a longer context"
        )
    if attention_mask is not None:
        check_right_padding(attention_mask, input_ids)
    positions, from_start = torch.arange(T, device=input_ids.device)[None], True
    if cache is not None:
        if columns > cache.keys_LBSKE.shape[2]:
            raise ValueError(f"KVCache: holds {cache.keys_LBSKE.shape[2]} tokens a row, got {columns}; make it larger")
        from_start, cache.width = cache.width == 0, columns
        positions = positions.expand(len(input_ids), T) if from_start else cache.lengths[:, None] + positions
    layer_types = {*config.layer_types} or {FULL}
    inputs = {name: attention_inputs(config, name, positions, columns, from_start) for name in layer_types}
    return ForwardContext(positions, inputs, cache, from_start)


def attention_inputs(
    config: ModelConfig, layer_type: str, positions: Tensor, columns: int, from_start: bool
) -> AttentionInputs:
    """Angles of the positions, and a mask over the columns where plain causal attention is not enough.

    If no earlier tokens are cached, SDPA's causal flag masks, unless a sliding window is shorter than the text.
    """
    tables = rope_tables(config, layer_type, columns, positions.device)
    cos, sin = (table[positions].unsqueeze(2) for table in tables)
    is_windowed = layer_type == SLIDING and config.sliding_window < columns
    if from_start and not is_windowed:
        return AttentionInputs(cos, sin, None)
    distance = positions[:, None, :, None] - torch.arange(columns, device=positions.device)  # from a column to a token
    visible = distance >= 0
    if is_windowed:
        visible = visible & (distance < config.sliding_window)
    return AttentionInputs(cos, sin, visible)


def check_right_padding(attention_mask: Tensor, input_ids: Tensor) -> None:
    """Raise ValueError if the mask has another shape than the ids, is not bool, or has padding before a token.

    The order is checked on the CPU only: on a GPU, the host would have to wait for the answer.
    """
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"Transformer: attention_mask must be {tuple(input_ids.shape)} like input_ids, got "
            f"{tuple(attention_mask.shape)}"
        )
    if attention_mask.dtype != torch.bool:
        raise ValueError(f"Transformer: attention_mask must be bool with True = real, got {attention_mask.dtype}")
    if attention_mask.device.type == "cpu" and bool((attention_mask[:, 1:] & ~attention_mask[:, :-1]).any()):
        raise ValueError("Transformer: padding must be on the right, got a mask with a gap or padding on the left")
