"""Grouped-query attention."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.model.cache import KVCache
from minirlhf.model.config import ModelConfig
from minirlhf.model.rope import rotate


class PlusOneRMSNorm(nn.RMSNorm):
    """RMSNorm whose weight counts from 1 (Gemma): a weight of 0 changes nothing."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).to(x.dtype)


NORMS = {"rms": nn.RMSNorm, "rms_plus_one": PlusOneRMSNorm, "layer": nn.LayerNorm}


def norm(config: ModelConfig, width: int | None = None, there: bool = True) -> nn.Module:
    """The family's norm, or nothing where it has none."""
    return NORMS[config.norm](width or config.hidden_size, config.rms_norm_eps) if there else nn.Identity()


class Attention(nn.Module):
    """Grouped-query attention: x [B, T, D] -> [B, T, D]; H / K query heads share a key-value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.kind = config, config.layer_type(layer)
        self.rotates = config.positions == "rope" and layer not in config.no_rope_layers
        self.head_dim, H, K = config.head_width, config.num_attention_heads, config.num_key_value_heads
        self.widths = [H * self.head_dim, K * self.head_dim, K * self.head_dim]  # of queries, keys, values
        projection = partial(nn.Linear, config.hidden_size, bias=config.attention_bias)
        if config.fused_projections:
            self.qkv_proj = projection(sum(self.widths))
        else:
            self.q_proj, self.k_proj, self.v_proj = (projection(width) for width in self.widths)
        self.o_proj = nn.Linear(self.widths[0], config.hidden_size, bias=config.output_bias)
        if config.qk_norm != "none":
            one = self.head_dim if config.qk_norm == "head" else None
            self.q_norm, self.k_norm = (norm(config, one or width) for width in self.widths[:2])
        scalar = config.query_pre_attn_scalar
        self.scale = None if scalar is None else scalar**-0.5

    def forward(self, x_BTD: Tensor, place: Place, layer: int) -> Tensor:
        view = place.views[self.kind]
        q_BTHE, k_BTKE, v_BTKE = self._project(x_BTD)
        if self.rotates:
            q_BTHE, k_BTKE = (rotate(x, view.cos, view.sin) for x in (q_BTHE, k_BTKE))
        if place.cache is not None:
            k_BSKE, v_BSKE = place.cache.write(layer, place.positions, k_BTKE, v_BTKE)
            if not place.first:  # what was read before counts too
                k_BTKE, v_BTKE = k_BSKE.to(q_BTHE.dtype), v_BSKE.to(q_BTHE.dtype)
        heads = (x.transpose(1, 2) for x in (q_BTHE, k_BTKE, v_BTKE))
        cap = self.config.attn_logit_softcapping
        if cap is not None:
            out_BHTE = capped_attention(*heads, view.visible, self.scale or self.head_dim**-0.5, cap)
        else:
            out_BHTE = F.scaled_dot_product_attention(
                *heads,
                attn_mask=view.visible,
                is_causal=view.visible is None,
                scale=self.scale,
                enable_gqa=self.widths[0] != self.widths[1],
            )
        return self.o_proj(out_BHTE.transpose(1, 2).flatten(2))

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> queries [B, T, H, E], keys and values [B, T, K, E], normed as the family does."""
        if self.config.fused_projections:
            q, k, v = self.qkv_proj(x_BTD).split(self.widths, dim=-1)
        else:
            q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.config.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


def capped_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float, cap: float) -> Tensor:
    """softmax(cap tanh(q k / cap)) v on [B, heads, T or S, E], which no fused kernel computes (Gemma 2)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if visible is None:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = softcap(q @ k.transpose(2, 3) * scale, cap).masked_fill(~visible, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap): x where it is small, never beyond the cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


class View(NamedTuple):
    """What the layers of one kind see."""

    cos: Tensor  # [1 or B, T, 1, E]
    sin: Tensor
    visible: Tensor | None  # [1 or B, 1, T, S] bool, or None for plain causal attention


class Place(NamedTuple):
    """Where the tokens of one forward stand, and what each of them may see: made once, read by every layer."""

    positions: Tensor  # [1, T] or, with a cache, [B, T]
    views: dict[str, View]  # by kind of layer
    cache: KVCache | None
    first: bool  # nothing was read before
