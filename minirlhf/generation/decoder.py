"""One-token forwards for sampling: a transformer's weights, laid out once for a rollout.

`Transformer.forward` is written to be read and trained. At one token a row, a small model spends most of the time
between its matrix products, so this file computes the same function with fewer and larger operations: the projections
of one input are one product, adapters are merged, weights are cast once and not once a token.

N rows, D width, H query heads, K key-value heads, E head width, S columns of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minirlhf.model.attention import Attention, attend
from minirlhf.model.cache import KVCache
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.context import AttentionInputs
from minirlhf.model.norms import softcap
from minirlhf.model.rope import rope_tables
from minirlhf.model.transformer import MLP, Block, Transformer
from minirlhf.runtime.distributed import world_size

JOINED = 2**28  # parameters; copies of a larger model would take too much memory


def can_decode(transformer: nn.Module) -> bool:
    """True for a transformer whose weights are whole on this process."""
    if not isinstance(transformer, Transformer) or world_size() == 1:
        return isinstance(transformer, Transformer)
    from minirlhf.runtime.parallel.sharding import is_sharded  # here, because torch's FSDP takes long to load

    return not is_sharded(transformer)


class Decoder:
    """One forward of one token for each row. It reads the weights when it is made: make a new one after an update.

    Memory: a copy of all weights of a small model; of a large model, of those that are adapted or cast.
    """

    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        """dtype: of the products and of the cache."""
        trunk, self.config, self.dtype = transformer.model, transformer.config, dtype
        joined = sum(p.numel() for p in transformer.parameters()) <= JOINED
        self.embed, self.norm = trunk.embed_tokens, norm_of(trunk.norm)
        self.embed_positions = trunk.embed_positions if self.config.positions == "learned" else None
        tied = self.config.tie_word_embeddings
        self.head = Product([trunk.embed_tokens if tied else transformer.lm_head], dtype, joined)
        self.layers = [Layer(block, dtype, joined) for block in trunk.layers]
        self.layer_types = {*self.config.layer_types} or {FULL}

    def __call__(self, tokens: Tensor, lengths: Tensor, cache: KVCache) -> Tensor:
        """Append a token to each of the first N rows of the cache -> the logits [N, V] of the tokens after them.

        tokens: [N] ids.   lengths: [N] tokens that the row has stored, which is the position of its new token.
        Raises: nothing; `cache.width` must be greater than every length, and it is the number of columns read.
        """
        N, columns = len(tokens), cache.keys_LBSKE.shape[2]
        x = self.embed(tokens)
        if self.config.embedding_scale:
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)
        if self.embed_positions is not None:
            x = x + self.embed_positions(lengths)
        inputs = {name: self._inputs(name, lengths, cache.width) for name in self.layer_types}
        places = torch.arange(N, device=x.device) * columns + lengths  # of the new keys among all columns of all rows
        for number, layer in enumerate(self.layers):
            keys, values = cache.keys_LBSKE[number], cache.values_LBSKE[number]
            x = layer(x, inputs[layer.attention.layer_type], keys, values, places, cache.width)
        return softcap(self.head(self.norm(x)), self.config.final_logit_softcapping)

    def _inputs(self, layer_type: str, lengths: Tensor, width: int) -> AttentionInputs:
        """Angles [N, 1, E], the sine with the sign of `turned`; and the mask [N, 1, 1, width] of the visible columns.

        The mask is added to the scores, because SDPA would turn a mask of bools into such a mask once a layer.
        """
        cos, sin = (
            table[lengths].unsqueeze(1) for table in rope_tables(self.config, layer_type, width, lengths.device)
        )
        signed = torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), dim=-1)
        distance = lengths[:, None] - torch.arange(width, device=lengths.device)
        visible = distance >= 0
        if layer_type == SLIDING and self.config.sliding_window < width:
            visible = visible & (distance < self.config.sliding_window)
        if self.config.attn_logit_softcapping is None:
            visible = torch.zeros(visible.shape, dtype=self.dtype, device=lengths.device).masked_fill_(
                ~visible, -torch.inf
            )
        return AttentionInputs(cos, signed, visible[:, None, None])


class Layer:
    """A block at one token a row: x [N, D] -> [N, D]."""

    def __init__(self, block: Block, dtype: torch.dtype, joined: bool) -> None:
        self.block, self.dtype = block, dtype
        self.attention: Attention = block.self_attn
        self.norms = norm_of(block.input_layernorm), norm_of(block.post_attention_layernorm)
        attention = self.attention
        fused = attention.config.fused_projections
        names = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
        self.qkv = Product([getattr(attention, name) for name in names], dtype, joined)
        self.output = Product([attention.o_proj], dtype, joined)
        self.mlp = block.mlp
        if isinstance(self.mlp, MLP):
            names = ("gate_up_proj",) if self.mlp.fused else ("gate_proj", "up_proj")
            names = names if self.mlp.gated else ("up_proj",)
            self.up = Product([getattr(self.mlp, name) for name in names], dtype, joined)
            self.down = Product([self.mlp.down_proj], dtype, joined)

    def __call__(
        self, x: Tensor, inputs: AttentionInputs, keys_BSKE: Tensor, values_BSKE: Tensor, places: Tensor, width: int
    ) -> Tensor:
        attended = self._attend(self.norms[0](x), inputs, keys_BSKE, values_BSKE, places, width)
        x = self.output.added_to(x, attended, self.block.attention_output_norm)
        y = self.norms[1](x)
        if not isinstance(self.mlp, MLP):  # experts
            return x + self.block.mlp_output_norm(self.mlp(y[:, None])[:, 0])
        inner = self.up(y)
        if self.mlp.gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = self.mlp.act(gate) * inner
        else:
            inner = self.mlp.act(inner)
        return self.down.added_to(x, inner, self.block.mlp_output_norm)

    def _attend(
        self, x: Tensor, inputs: AttentionInputs, keys_BSKE: Tensor, values_BSKE: Tensor, places: Tensor, width: int
    ) -> Tensor:
        """Write the keys and values of the new tokens into the cache, and attend -> [N, H E]."""
        config, N = self.attention.config, len(x)
        H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_width
        q_and_k, v = self.qkv(x).split([(H + K) * E, K * E], dim=-1)
        if config.qk_norm == "width":
            q, k = q_and_k.split([H * E, K * E], dim=-1)
            q_and_k = torch.cat((self.attention.q_norm(q), self.attention.k_norm(k)), dim=-1)
        q_and_k = q_and_k.unflatten(-1, (H + K, E))
        if config.qk_norm == "head":
            q, k = q_and_k.split([H, K], dim=1)
            q_and_k = torch.cat((self.attention.q_norm(q), self.attention.k_norm(k)), dim=1)
        if self.attention.uses_rope:
            q_and_k = turned(q_and_k, inputs.cos, inputs.sin)
        for cached, new in ((keys_BSKE, q_and_k[:, H:]), (values_BSKE, v)):
            cached.view(-1, K * E).index_copy_(0, places, new.reshape(N, K * E).to(cached.dtype))
        # the query heads of one key-value head take the place of query tokens, so no key is copied
        q_NKGE = q_and_k[:, :H].reshape(N, K, H // K, E).to(self.dtype)
        k_NKSE, v_NKSE = (cached[:N, :width].transpose(1, 2) for cached in (keys_BSKE, values_BSKE))
        out = attend(q_NKGE, k_NKSE, v_NKSE, inputs, config.attention_scale, config.attn_logit_softcapping)
        return out.reshape(N, H * E)


class Product:
    """x [N, in] -> x W^T + b of one Linear, or of several Linears with the same input as one product."""

    def __init__(self, linears: Sequence[nn.Module], dtype: torch.dtype, joined: bool) -> None:
        from minirlhf.adapters.quantised import QuantisedLinear

        bases = [getattr(linear, "base", linear) for linear in linears]
        self.modules: list[Callable[[Tensor], Tensor]] = []
        if any(isinstance(base, QuantisedLinear) for base in bases) or (len(linears) > 1 and not joined):
            self.modules, self.dtype = list(linears), dtype  # a copy of these weights would take too much memory
            return
        weights = [linear.weight.detach().to(dtype) for linear in linears]
        biases = [base.bias for base in bases if getattr(base, "bias", None) is not None]
        self.weight_t = (weights[0] if len(weights) == 1 else torch.cat(weights)).t()
        if joined:  # a product of few rows reads such a copy a third faster
            self.weight_t = self.weight_t.contiguous()
        self.bias = torch.cat([bias.detach() for bias in biases]).to(dtype) if biases else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.modules:
            parts = [module(x).to(self.dtype) for module in self.modules]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        x = x.to(self.weight_t.dtype)
        return x @ self.weight_t if self.bias is None else torch.addmm(self.bias, x, self.weight_t)

    def added_to(self, residual: Tensor, x: Tensor, norm: nn.Module) -> Tensor:
        """residual + norm(product): one operation where the family has no norm on outputs and no bias."""
        plain = isinstance(norm, nn.Identity) and not self.modules and self.bias is None
        if plain and self.weight_t.dtype == residual.dtype == x.dtype:
            return torch.addmm(residual, x, self.weight_t)
        return residual + norm(self(x))


def turned(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """`rope.rotate` in three operations: the second half of the rolled numbers meets the sine, the first minus it."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin).to(x.dtype)


def norm_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function of a norm; on a CPU torch's RMSNorm in fp32 takes seven operations, this function four."""
    if type(norm) is not nn.RMSNorm or norm.weight.dtype != torch.float32 or norm.weight.device.type != "cpu":
        return norm
    width = norm.normalized_shape[0]
    scale, least = norm.weight.detach() * width**0.5, torch.tensor((width * (norm.eps or 0.0)) ** 0.5)

    def rms_norm(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return norm(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * scale / torch.hypot(length, least)  # hypot: the root of the sum of squares and of width * eps

    return rms_norm
