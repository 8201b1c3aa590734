"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023,
arXiv:2302.13971 and 2307.09288). Module names are those of the Hugging Face Llama, so state_dict() is that layout.

B sequences, T tokens, D width, H query heads, K key-value heads, E head width, S columns of the cache.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minirlhf.errors import InputError
from minirlhf.model.config import ModelConfig


class KVCache:
    """Keys and values of what has been read: column = position, so ragged rows need no left padding.

    Memory: 2 * layers * B * size * K * E numbers.
    """

    def __init__(
        self, config: ModelConfig, batch: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (config.num_hidden_layers, batch, size, config.num_key_value_heads, config.head_width)
        self.keys_LBSKE = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBSKE = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # real tokens read, per row
        self.width = 0  # columns in use: an upper bound of lengths that the host knows without asking the device

    def write(self, layer: int, positions_BT: Tensor, keys_BTKE: Tensor, values_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store at the given columns -> all keys and values in use, [B, S, K, E]."""
        rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        self.keys_LBSKE[layer, rows, positions_BT] = keys_BTKE.to(self.keys_LBSKE.dtype)
        self.values_LBSKE[layer, rows, positions_BT] = values_BTKE.to(self.values_LBSKE.dtype)
        return self.keys_LBSKE[layer, :, : self.width], self.values_LBSKE[layer, :, : self.width]

    def halves(self) -> tuple[KVCache, KVCache]:
        """The first and the second half of the layers, in the same storage: for two models that read as one."""
        middle = len(self.keys_LBSKE) // 2
        halves = []
        for layers in (slice(0, middle), slice(middle, None)):
            half = copy.copy(self)
            half.keys_LBSKE, half.values_LBSKE = self.keys_LBSKE[layers], self.values_LBSKE[layers]
            halves.append(half)
        return halves[0], halves[1]

    def adopt(self, rows: list[int], part: KVCache, parts: Tensor) -> None:
        """Take over what a smaller cache has read: row `rows[k]` is its row `parts[k]`."""
        self.keys_LBSKE[:, rows, : part.width] = part.keys_LBSKE[:, parts, : part.width]
        self.values_LBSKE[:, rows, : part.width] = part.values_LBSKE[:, parts, : part.width]
        self.lengths[rows] = part.lengths[parts]
        self.width = max(self.width, part.width)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows (the unfinished ones)."""
        self.keys_LBSKE, self.values_LBSKE = self.keys_LBSKE[:, rows], self.values_LBSKE[:, rows]
        self.lengths = self.lengths[rows]


class Attention(nn.Module):
    """Grouped-query attention: x [B, T, D] -> [B, T, D]; H / K query heads share a key-value head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_width,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, place: Place, layer: int) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BTHE = rotate(self.q_proj(x_BTD).view(B, T, self.heads, self.head_dim), place)
        k_BTKE = rotate(self.k_proj(x_BTD).view(B, T, self.kv_heads, self.head_dim), place)
        v_BTKE = self.v_proj(x_BTD).view(B, T, self.kv_heads, self.head_dim)
        if place.cache is not None:
            k_BSKE, v_BSKE = place.cache.write(layer, place.positions, k_BTKE, v_BTKE)
            if place.visible is not None:  # what was read before counts too
                k_BTKE, v_BTKE = k_BSKE.to(q_BTHE.dtype), v_BSKE.to(q_BTHE.dtype)
        out_BHTE = F.scaled_dot_product_attention(
            q_BTHE.transpose(1, 2),
            k_BTKE.transpose(1, 2),
            v_BTKE.transpose(1, 2),
            attn_mask=place.visible,
            is_causal=place.visible is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.o_proj(out_BHTE.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): x [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream: x [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, place: Place, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), place, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


def run_block(block: Block, x: Tensor, place: Place) -> Tensor:
    """One block without a cache: the same graph for every layer, so that it is compiled once."""
    return block(x, place, 0)


class Place:
    """Where the tokens of one forward stand, and what each of them may see: made once, read by every layer."""

    def __init__(self, positions: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None, cache: KVCache | None):
        self.positions = positions  # [1, T] or, with a cache, [B, T]
        self.cos, self.sin = cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)  # [1 or B, T, 1, E]
        self.visible = visible  # [B, 1, T, S] bool, or None for plain causal attention
        self.cache = cache


def rotate(x: Tensor, place: Place) -> Tensor:
    """Rotary positions on [B, T, heads, E] (Su et al. 2021, arXiv:2104.09864), halves layout."""
    first, second = x.chunk(2, dim=-1)
    return (x * place.cos + torch.cat((-second, first), dim=-1) * place.sin).to(x.dtype)


class Trunk(nn.Module):
    """Embedding, blocks, last norm: ids -> hidden states. What policy, reward and value models share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run_block = run_block  # or that, compiled
        self.gradient_checkpointing = False  # True: keep only each block's input, compute the rest again in backward
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.apply(self._init_weights)
        for block in self.layers:  # the residual stream sums 2 * layers outputs: keep its variance at 1 layer's
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(projection.weight, std=0.02 / (2 * config.num_hidden_layers) ** 0.5)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> hidden [B, T, D] in model order.

        Padding stands on the right, so causal attention never sees it and no mask is needed: hidden states of padding
        are junk. With a cache the tokens are appended to what each row has read.

        Raises: InputError if the context is too short, ValueError if the mask is not bool or pads on the left.
        """
        place = self._place(input_ids, attention_mask, cache)
        x = self.embed_tokens(input_ids)
        for layer, block in enumerate(self.layers):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.run_block, block, x, place, use_reentrant=False)
            elif cache is None:
                x = self.run_block(block, x, place)
            else:
                x = block(x, place, layer)
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
        cos, sin = rope_tables(self.config, input_ids.device)
        steps = torch.arange(T, device=input_ids.device)
        if cache is None:
            return Place(steps[None], cos, sin, None, None)
        if needed > cache.keys_LBSKE.shape[2]:
            raise ValueError(f"KVCache: holds {cache.keys_LBSKE.shape[2]} tokens a row, got {needed}; make it larger")
        first, cache.width = cache.width == 0, needed
        if first:  # nothing to look back on: causal attention needs no [T, S] mask
            return Place(steps.expand(len(input_ids), T), cos, sin, None, cache)
        positions = cache.lengths[:, None] + steps
        visible = torch.arange(needed, device=input_ids.device) <= positions[:, None, :, None]
        return Place(positions, cos, sin, visible, cache)


class Transformer(nn.Module):
    """Trunk and language-model head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=0.02)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the head, tied to the embedding or not."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> logits [B, T, V] in model order: position t scores token t + 1. See `Trunk.forward`."""
        return F.linear(self.model(input_ids, attention_mask, cache), self.head_weight)


@lru_cache(maxsize=8)
def rope_tables(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [max_position_embeddings, E] each.

    Made once for all models of a shape, and no part of them: `model.to(bfloat16)` must not round positions.
    """
    with torch.inference_mode(False):  # whoever asks first, training may use them too
        exponents = torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width
        angles = torch.arange(config.max_position_embeddings)[:, None] / config.rope_theta**exponents
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().float().to(device), angles.sin().float().to(device)


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
