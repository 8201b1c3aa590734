"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023,
arXiv:2302.13971 and 2307.09288), and what other families do otherwise, as settings of ModelConfig. Module names are
those of the Hugging Face Llama; families.py has the names of the others.

B sequences, T tokens, D width, H query heads, K key-value heads, E head width, S columns of the cache.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minirlhf.errors import InputError
from minirlhf.model.attention import Attention, Place, View, norm, softcap
from minirlhf.model.cache import KVCache
from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.model.experts import Experts
from minirlhf.model.rope import rope_tables, table_length

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class MLP(nn.Module):
    """x [B, T, D] -> [B, T, D], with a gate (Shazeer 2020, arXiv:2002.05202) or, as in GPT-2, without."""

    def __init__(self, config: ModelConfig, inner: int) -> None:
        super().__init__()
        self.gated, self.fused, self.act = config.gated_mlp, config.fused_projections, ACTIVATIONS[config.hidden_act]
        bias = config.mlp_bias
        if self.gated and self.fused:
            self.gate_up_proj = nn.Linear(config.hidden_size, 2 * inner, bias=bias)
        else:
            self.up_proj = nn.Linear(config.hidden_size, inner, bias=bias)
            if self.gated:
                self.gate_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down_proj(self.act(self.up_proj(x)))
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(self.act(gate) * up)


def feed_forward(config: ModelConfig, layer: int) -> MLP | Experts:
    if not config.has_experts(layer):
        return MLP(config, config.intermediate_size)
    return Experts(config, [MLP(config, config.moe_intermediate_size) for _ in range(config.num_experts)])


class Block(nn.Module):
    """Attention and MLP, or experts, each added to the residual stream: x [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = norm(config, there=config.norm_before)
        self.self_attn = Attention(config, layer)
        self.attention_output_norm = norm(config, there=config.norm_after)
        self.post_attention_layernorm = norm(config, there=config.norm_before)  # Llama's name for what enters the MLP
        self.mlp = feed_forward(config, layer)
        self.mlp_output_norm = norm(config, there=config.norm_after)

    def forward(self, x: Tensor, place: Place, layer: int) -> Tensor:
        x = x + self.attention_output_norm(self.self_attn(self.input_layernorm(x), place, layer))
        return x + self.mlp_output_norm(self.mlp(self.post_attention_layernorm(x)))


def run_block(block: Block, x: Tensor, place: Place) -> Tensor:
    """One block without a cache: the same graph for every layer of a kind, so that it is compiled once."""
    return block(x, place, 0)


class Trunk(nn.Module):
    """Embedding, blocks, last norm: ids -> hidden states. What policy, reward and value models share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run_block = run_block  # or that, compiled
        self.gradient_checkpointing = False  # True: keep only each block's input, compute the rest again in backward
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = norm(config)
        self.apply(self._init_weights)
        for block in self.layers:  # the residual stream sums 2 * layers outputs: keep its variance at 1 layer's
            downs = [module.down_proj for module in block.modules() if isinstance(module, MLP)]
            for projection in (block.self_attn.o_proj, *downs):
                nn.init.normal_(projection.weight, std=0.02 / (2 * config.num_hidden_layers) ** 0.5)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> hidden [B, T, D] in model order.

        Padding stands on the right, so causal attention never sees it and no mask is needed: hidden states of padding
        are junk. With a cache the tokens are appended to what each row has read.

        Raises: InputError if the context is too short, ValueError if the mask is not bool or pads on the left.
        """
        place = self._place(input_ids, attention_mask, cache)
        x = self.embed_tokens(input_ids)
        if self.config.embedding_scale:  # in the weights' own type, as it was trained
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)
        if self.config.positions == "learned":
            x = x + self.embed_positions(place.positions)
        for layer, block in enumerate(self.layers):
            if cache is not None:  # what is written there cannot be computed a second time
                x = block(x, place, layer)
            elif self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.run_block, block, x, place, use_reentrant=False)
            else:
                x = self.run_block(block, x, place)
        if cache is not None:
            cache.lengths = cache.lengths + (input_ids.shape[1] if attention_mask is None else attention_mask.sum(-1))
        return self.norm(x)

    def _place(self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None) -> Place:
        T = input_ids.shape[1]
        needed = T if cache is None else cache.width + T
        if needed > self.config.max_position_embeddings:
            raise InputError(
                f"Transformer: the context holds {self.config.max_position_embeddings} tokens, got {needed}; shorten "
                "the prompt or the response, or use a model with a longer context"
            )
        if attention_mask is not None:
            check_right_padding(attention_mask, input_ids)
        steps = torch.arange(T, device=input_ids.device)
        if cache is None:
            return Place(steps[None], self._views(steps[None], T, plain=True), None, True)
        if needed > cache.keys_LBSKE.shape[2]:
            raise ValueError(f"KVCache: holds {cache.keys_LBSKE.shape[2]} tokens a row, got {needed}; make it larger")
        first, cache.width = cache.width == 0, needed
        positions = steps.expand(len(input_ids), T) if first else cache.lengths[:, None] + steps
        return Place(positions, self._views(positions, needed, plain=first), cache, first)

    def _views(self, positions: Tensor, S: int, plain: bool) -> dict[str, View]:
        """What each kind of layer sees of S columns. plain: nothing to look back on, so causal attention needs no mask
        [T, S] but where a window is shorter than the text."""
        config, views = self.config, {}
        for kind in {*config.layer_types} or {FULL}:
            tables = rope_tables(config, kind, table_length(config, S), positions.device)
            window = config.sliding_window if kind == SLIDING and config.sliding_window < S else None
            visible = None
            if not plain or window is not None:
                back = positions[:, None, :, None] - torch.arange(
                    S, device=positions.device
                )  # how far back a column is
                visible = back >= 0 if window is None else (back >= 0) & (back < window)
            views[kind] = View(*(table[positions].unsqueeze(2) for table in tables), visible)
        return views


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
        """[V, D]: the head, tied to the embedding or not; made anew if it has an adapter."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> logits [B, T, V] in model order: position t scores token t + 1. See `Trunk.forward`."""
        return self.logits(self.model(input_ids, attention_mask, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], capped where the family caps."""
        tied = self.config.tie_word_embeddings
        logits = F.linear(hidden, self.model.embed_tokens.weight) if tied else self.lm_head(hidden)
        return softcap(logits, self.config.final_logit_softcapping)


def check_right_padding(attention_mask: Tensor, input_ids: Tensor) -> None:
    """Raise ValueError if a mask is not bool, of another shape, or padding stands before a token.

    The last is looked at on the CPU only: a GPU would have to be waited for.
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
