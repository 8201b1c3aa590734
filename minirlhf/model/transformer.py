"""A decoder-only transformer: each block adds attention and an MLP to the residual stream.

The defaults are Llama's: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023,
arXiv:2302.13971 and 2307.09288). Settings of ModelConfig give the other families. Modules have the names of
the Hugging Face Llama; model/names.py has the names in the files of other families.

B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minirlhf.model.attention import Attention
from minirlhf.model.cache import KVCache
from minirlhf.model.config import ModelConfig
from minirlhf.model.context import ForwardContext, forward_context
from minirlhf.model.norms import norm, softcap

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class MLP(nn.Module):
    """x [..., D] -> [..., D], with a gate (Shazeer 2020, arXiv:2002.05202) or, as in GPT-2, without."""

    def __init__(self, config: ModelConfig, inner: int) -> None:
        from minirlhf.model.products import Linear  # here, so that the core loads no leaf

        super().__init__()
        self.gated, self.fused, self.act = config.gated_mlp, config.fused_projections, ACTIVATIONS[config.hidden_act]
        bias = config.mlp_bias
        if self.gated and self.fused:
            self.gate_up_proj = Linear(config.hidden_size, 2 * inner, bias=bias)
        else:
            self.up_proj = Linear(config.hidden_size, inner, bias=bias)
            if self.gated:
                self.gate_proj = Linear(config.hidden_size, inner, bias=bias)
        self.down_proj = Linear(inner, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down_proj(self.act(self.up_proj(x)))
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        if self.act is F.silu and x.device.type == "cpu" and not torch.compiler.is_compiling():
            from minirlhf.model.elementwise import SwiGLU  # here, so that the core loads no leaf

            return self.down_proj(SwiGLU.apply(gate, up))
        return self.down_proj(self.act(gate) * up)


def feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    """The layer's MLP, or its experts."""
    if not config.has_experts(layer):
        return MLP(config, config.intermediate_size)
    from minirlhf.model.experts import Experts  # most models have no experts and need not load them

    return Experts(config, [MLP(config, config.moe_intermediate_size) for _ in range(config.num_experts)])


class Block(nn.Module):
    """Attention and MLP (or experts), each added to the residual stream: x [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = norm(config, used=config.norm_before)
        self.self_attn = Attention(config, layer)
        self.attention_output_norm = norm(config, used=config.norm_after)
        self.post_attention_layernorm = norm(config, used=config.norm_before)  # Llama's name for the MLP's input norm
        self.mlp = feed_forward(config, layer)
        self.mlp_output_norm = norm(config, used=config.norm_after)

    def forward(self, x: Tensor, context: ForwardContext, layer: int) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), context, layer)
        x = context.read_of(x) + self.attention_output_norm(attended)
        return x + self.mlp_output_norm(self.mlp(self.post_attention_layernorm(x)))


def run_block(block: Block, x: Tensor, context: ForwardContext) -> Tensor:
    """A block without a cache. All layers of one type have the same graph, so one compilation serves them all."""
    return block(x, context, 0)


class Trunk(nn.Module):
    """Embedding, blocks and last norm: ids -> hidden states. Policy, reward and value models are built on it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run_block = run_block  # a job may put the compiled function here
        self.gradient_checkpointing = 0  # n: every n-th block keeps only its input and runs again in backward; 0: none
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = norm(config)
        self.apply(self._init_weights)
        # the residual stream sums 2 * layers outputs: smaller weights keep its variance from growing with the depth
        for block in self.layers:
            downs = [module.down_proj for module in block.modules() if isinstance(module, MLP)]
            for projection in (block.self_attn.o_proj, *downs):
                nn.init.normal_(projection.weight, std=0.02 / (2 * config.num_hidden_layers) ** 0.5)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """-> hidden [B, T, D] in model order.

        places: [n] of the tokens among all B T that the caller reads; the last block's MLP skips the others. None: all.

        Padding stands on the right, so causal attention never looks at it and needs no mask. Hidden states at padding
        are junk, or not computed at all (packing.py). With a cache, the tokens are appended to the tokens that each row
        has stored.

        Raises: InputError if the context is too short, ValueError if the mask is not bool or pads on the left.
        """
        context = forward_context(self.config, input_ids, attention_mask, cache)
        packing, shape = None, input_ids.shape
        if self.run_block is not run_block or self.config.num_experts:
            places = None  # a compiled block has the graph of all tokens, and a router loss reads all tokens
        if cache is None and self.run_block is run_block:  # a compiled block would be compiled again for each batch
            from minirlhf.model.packing import packed_context, packing_of  # here, so that the core loads no leaf

            if packing := packing_of(self, input_ids, attention_mask):
                input_ids, context = packing.pack(input_ids), packed_context(self.config, packing)
        x = self.embed_tokens(input_ids)
        if self.config.embedding_scale:  # Gemma was trained with the factor in the weights' dtype
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)
        if self.config.positions == "learned":
            x = x + self.embed_positions(context.positions)
        for layer, block in enumerate(self.layers):
            if places is not None and layer + 1 == len(self.layers):
                context = packing.reading(context, places) if packing else context._replace(read=places)
            if cache is not None:  # never checkpointed: the backward pass would write to the cache again
                x = block(x, context, layer)
            elif (every := self.gradient_checkpointing) and layer % every == 0 and torch.is_grad_enabled():
                x = checkpoint(self.run_block, block, x, context, use_reentrant=False)
            else:
                x = self.run_block(block, x, context)
        if cache is not None:
            cache.lengths = cache.lengths + (input_ids.shape[1] if attention_mask is None else attention_mask.sum(-1))
        x = self.norm(x)
        if context.read is None:
            return packing.unpack(x) if packing else x
        return x.new_zeros(shape.numel(), x.shape[-1]).index_copy(0, places, x[0]).unflatten(0, shape)


class Transformer(nn.Module):
    """Trunk and language-model head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=0.02)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the embedding if the head is tied, else lm_head. With an adapter, computed at each access."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> logits [B, T, V] in model order: position t scores token t + 1. See `Trunk.forward`."""
        return self.logits(self.model(input_ids, attention_mask, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], with the family's soft cap."""
        tied = self.config.tie_word_embeddings
        logits = F.linear(hidden, self.model.embed_tokens.weight) if tied else self.lm_head(hidden)
        return softcap(logits, self.config.final_logit_softcapping)
