"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).

B sequences, T tokens, S columns of keys, D width, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.model.config import ModelConfig
from minirlhf.model.context import AttentionInputs, ForwardContext
from minirlhf.model.norms import norm
from minirlhf.model.rope import rotate


class Attention(nn.Module):
    """x [B, T, D] -> [B, T, D], or [1, n, D] if only n tokens are read; H / K query heads share a key-value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        from minirlhf.model.products import Linear  # here, so that the core loads no leaf

        super().__init__()
        self.config, self.layer_type, self.uses_rope = config, config.layer_type(layer), config.uses_rope(layer)
        query_width = config.num_attention_heads * config.head_width
        key_width = config.num_key_value_heads * config.head_width
        self.widths = [query_width, key_width, key_width]  # of queries, keys and values
        projection = partial(Linear, config.hidden_size, bias=config.attention_bias)
        if config.fused_projections:
            self.qkv_proj = projection(sum(self.widths))
        else:
            self.q_proj, self.k_proj, self.v_proj = (projection(width) for width in self.widths)
        self.o_proj = Linear(query_width, config.hidden_size, bias=config.output_bias)
        if config.qk_norm == "width":
            self.q_norm, self.k_norm = norm(config, query_width), norm(config, key_width)
        elif config.qk_norm == "head":
            self.q_norm, self.k_norm = norm(config, config.head_width), norm(config, config.head_width)

    def forward(self, x_BTD: Tensor, context: ForwardContext, layer: int) -> Tensor:
        inputs = context.inputs[self.layer_type]
        if inputs.packing and inputs.packing.short:
            return self.o_proj(inputs.packing.attended(self, x_BTD, inputs, context.read))
        q_BTHE, k_BSKE, v_BSKE = self.project(x_BTD, x_BTD)  # S is T, unless a cache adds columns
        if self.uses_rope:
            q_BTHE, k_BSKE = (rotate(x, inputs.cos, inputs.sin) for x in (q_BTHE, k_BSKE))
        if context.cache is not None:
            cached = context.cache.write(layer, context.positions, k_BSKE, v_BSKE)
            if not context.from_start:  # the cache holds earlier tokens too
                k_BSKE, v_BSKE = (x.to(q_BTHE.dtype) for x in cached)
        options = self.config.attention_scale, self.config.attn_logit_softcapping
        out_BHTE = attend(*(x.transpose(1, 2) for x in (q_BTHE, k_BSKE, v_BSKE)), inputs, *options)
        return self.o_proj(context.read_of(out_BHTE.transpose(1, 2).flatten(2)))

    def project(self, x_BTD: Tensor, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> queries [..., H, E] of the tokens `asking`, keys and values [B, T, K, E], with the family's norm."""
        if self.config.fused_projections:
            q, k, v = self.qkv_proj(x_BTD).split(self.widths, dim=-1)
        else:
            q, k, v = self.q_proj(asking), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.config.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.unflatten(-1, (-1, self.config.head_width)) for x in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


def attend(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, inputs: AttentionInputs, scale: float | None, cap: float | None
) -> Tensor:
    """softmax(scale q k) v over the visible columns -> [B, H, T, E]. This function alone chooses the kernel.

    scale: None means E^-0.5.   cap: bound of the scores, see `softcap`; None: no bound.
    """
    if q_BHTE.dtype == torch.bfloat16 and q_BHTE.is_cpu and cap is None and not torch.is_inference_mode_enabled():
        # A CPU's backward pass of attention in bf16 takes more time than all products of the step; in fp32 it does not.
        # Forwards without gradient do the same, so that their log-probs are those of training; sampling does not.
        with torch.autocast("cpu", enabled=False):
            return attend(*(x.float() for x in (q_BHTE, k_BKSE, v_BKSE)), inputs, scale, cap).to(q_BHTE.dtype)
    if inputs.packing:
        from minirlhf.model.packing import attend_each  # here, so that the core loads no leaf

        return attend_each(attend, q_BHTE, k_BKSE, v_BKSE, inputs, scale, cap)
    if cap is not None or not len(q_BHTE):  # FlashAttention refuses a batch without rows
        from minirlhf.model.capped_attention import capped_attention  # here, so that the core loads no leaf

        return capped_attention(q_BHTE, k_BKSE, v_BKSE, inputs.visible, scale or q_BHTE.shape[-1] ** -0.5, cap or 1.0)
    from minirlhf.model.block_attention import BlockAttention, suits  # here, so that the core loads no leaf

    q, k, v, mask, grouped = q_BHTE, k_BKSE, v_BKSE, inputs.visible, q_BHTE.shape[1] != k_BKSE.shape[1]
    if suits(q, k, mask):
        return BlockAttention.apply(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)
