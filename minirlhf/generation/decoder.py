"""One-token forwards for sampling: a transformer's weights, laid out once for a rollout.

`Transformer.forward` is written to be read and trained. At one token a row, a small model spends most of the time
between its matrix products, so this file computes the same function with fewer and larger operations: the projections
of one input are one product, adapters are merged, weights are cast once and not once a token.

N rows, D width, H query heads, K key-value heads, E head width, S columns of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.generation.slot_cache import SlotCache, pairs_first
from minirlhf.model.attention import attend
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.context import AttentionInputs
from minirlhf.model.norms import softcap
from minirlhf.model.rms_norm import RMSNorm
from minirlhf.model.rope import rope_tables
from minirlhf.model.transformer import MLP, Block, Transformer
from minirlhf.runtime.distributed import world_size

JOINED = 2**28  # parameters; copies of a larger model would take too much memory
FULL_PRECISION = torch.float32, torch.float64
PACKED, ROWS = 2**18, 16  # numbers in the smallest weight that is packed (the call costs 13 us); rows of a product
MANY = 64  # rows; oneDNN writes code for each number of rows, 0.6 ms, and keeps 1,024 such codes


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
        self.head = Product([trunk.embed_tokens if tied else transformer.lm_head], dtype, joined, Buffer())
        self.by_products = (
            transformer.device.type == "cpu" and dtype in FULL_PRECISION and self.config.attn_logit_softcapping is None
        )
        attention, buffers = attend_by_products if self.by_products else attend, (Buffer(), Buffer())
        self.layers = [Layer(block, dtype, joined, attention, *buffers) for block in trunk.layers]
        self.layer_types = {*self.config.layer_types} or {FULL}

    def __call__(self, tokens: Tensor, lengths: Tensor, cache: SlotCache) -> Tensor:
        """Append a token to each of the first N slots of the cache -> the logits [N, V] of the tokens after them.

        tokens: [N] ids.   lengths: [N] tokens that the row has stored, which is the position of its new token.
        The next call overwrites the logits. `cache.width` must be greater than every length, and it is the number of
        columns read.
        """
        N, width = len(tokens), cache.width
        x = self.embed(tokens)
        if self.config.embedding_scale:
            x = x * torch.full((), self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)  # no copy to a GPU
        if self.embed_positions is not None:
            x = x + self.embed_positions(lengths)
        inputs = {name: self._inputs(name, lengths, width) for name in self.layer_types}
        K = self.config.num_key_value_heads
        heads = torch.arange(N * K, device=x.device).view(N, K)
        places = (heads * cache.columns + lengths[:, None]).flatten()  # of the new token among all columns of all heads
        # for each layer, views of the keys and values that it reads, and of the rows that it writes
        seen = cache.numbers[:, :, :N, :, :width].flatten(0, 1)
        seen = (seen.flatten(1, 2) if self.by_products else seen).unbind()
        written = cache.numbers.flatten(2, 4).unbind()
        for layer, keys, values, rows in zip(self.layers, seen[::2], seen[1::2], written, strict=True):
            x = layer(x, *inputs[layer.type], keys, values, rows, places)
        return softcap(self.head(self.norm(x)), self.config.final_logit_softcapping)

    def _inputs(self, layer_type: str, lengths: Tensor, width: int) -> tuple[Tensor, AttentionInputs]:
        """-> (rotations [N, 1, E / 2], complex numbers of size 1; the mask of the visible columns: [N, 1, 1, width] or,
        for `attend_by_products`, [N K, 1, width]).

        The mask is added to the scores, because SDPA would turn a mask of bools into such a mask once a layer.
        """
        cos, sin = (table[lengths] for table in rope_tables(self.config, layer_type, width, lengths.device))
        half = cos.shape[-1] // 2
        rotation = torch.complex(cos[:, None, :half], sin[:, None, half:])
        columns = torch.arange(width, device=lengths.device)
        hidden = columns > lengths[:, None]
        if layer_type == SLIDING and self.config.sliding_window < width:
            hidden |= columns <= lengths[:, None] - self.config.sliding_window
        if self.config.attn_logit_softcapping is None:
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=lengths.device).masked_fill_(hidden, -torch.inf)
        else:
            mask = ~hidden
        if self.by_products:  # a row for each key-value head
            mask = mask.repeat_interleave(self.config.num_key_value_heads, dim=0)[:, None]
        else:
            mask = mask[:, None, None]
        return rotation, AttentionInputs(cos, sin, mask)


class Layer:
    """A block at one token a row: x [N, D] -> [N, D], in the memory of x where that is possible.

    Everything that a step asks for is looked up once, because a lookup in a module takes as long as a small operation.
    """

    def __init__(
        self,
        block: Block,
        dtype: torch.dtype,
        joined: bool,
        attend: Callable[..., Tensor],
        qkv: Buffer,
        inner: Buffer,
    ) -> None:
        """qkv, inner: memory of the results of these products, shared by all layers."""
        attention, config, mlp = block.self_attn, block.self_attn.config, block.mlp
        self.attend = attend
        self.type, self.uses_rope, self.qk_norm = attention.layer_type, attention.uses_rope, config.qk_norm
        self.H, self.K, self.E = config.num_attention_heads, config.num_key_value_heads, config.head_width
        self.scale, self.cap = config.attention_scale, config.attn_logit_softcapping
        self.norms = norm_of(block.input_layernorm), norm_of(block.post_attention_layernorm)
        self.output_norms = block.attention_output_norm, block.mlp_output_norm
        self.order = pairs_first(config).to(next(block.parameters()).device)
        order = None
        if self.qk_norm == "none":
            order = torch.arange((self.H + 2 * self.K) * self.E, device=self.order.device).view(-1, self.E)
            order[: self.H + self.K] = order[: self.H + self.K, self.order]
            order = order.flatten()
        else:
            self.head_norms = attention.q_norm, attention.k_norm
        names = ("qkv_proj",) if config.fused_projections else ("q_proj", "k_proj", "v_proj")
        self.qkv = Product([getattr(attention, name) for name in names], dtype, joined, qkv, order)
        self.output = Product([attention.o_proj], dtype, joined)
        self.heads, self.halves = Views(self._heads), Views(lambda inner: inner.chunk(2, dim=-1))
        self.experts = None if isinstance(mlp, MLP) else mlp
        if not self.experts:
            gated = ("gate_up_proj",) if mlp.fused else ("gate_proj", "up_proj")
            names = gated if mlp.gated else ("up_proj",)
            self.up = Product([getattr(mlp, name) for name in names], dtype, joined, inner)
            self.down = Product([mlp.down_proj], dtype, joined)
            self.gated, self.act = mlp.gated, partial(F.silu, inplace=True) if mlp.act is F.silu else mlp.act

    def __call__(
        self,
        x: Tensor,
        rotation: Tensor,
        inputs: AttentionInputs,
        k_NKSE: Tensor,
        v_NKSE: Tensor,
        rows: Tensor,
        places: Tensor,
    ) -> Tensor:
        """rows: [2, B K S, E], all keys and values of the layer.   places: [N K] of the new tokens' among them."""
        qkv = self.qkv(self.norms[0](x))
        q_NKGE, pairs, new = self.heads(qkv)
        if self.qk_norm != "none":
            self._normalise(qkv)
        if self.uses_rope:
            turn(pairs, rotation)
        rows.index_copy_(1, places, new.flatten(1, 2))
        # the query heads of one key-value head take the place of query tokens, so no key is copied
        attended = self.attend(q_NKGE, k_NKSE, v_NKSE, inputs, self.scale, self.cap).reshape(len(x), self.H * self.E)
        x = self.output.added_to(x, attended, self.output_norms[0])
        y = self.norms[1](x)
        if self.experts:
            return x + self.output_norms[1](self.experts(y[:, None])[:, 0])
        inner = self.up(y)
        if self.gated:
            gate, inner = self.halves(inner)
            inner = self.act(gate).mul_(inner)
        else:
            inner = self.act(inner)
        return self.down.added_to(x, inner, self.output_norms[1])

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> views: queries [N, K, G, E], the pairs of queries and keys, new keys and values [2, N, K, E]."""
        N, H, K, E = len(qkv), self.H, self.K, self.E
        q, new = qkv.split([H * E, 2 * K * E], dim=-1)
        pairs = pairs_of(qkv.view(N, H + 2 * K, E)[:, : H + K]) if self.uses_rope else q
        return q.view(N, K, H // K, E), pairs, new.view(N, 2, K, E).transpose(0, 1)

    def _normalise(self, qkv: Tensor) -> None:
        """The family's norms on queries and keys, in place; then their numbers in pairs."""
        H, K, E = self.H, self.K, self.E
        parts = qkv[:, : (H + K) * E].split([H * E, K * E], dim=-1)
        if self.qk_norm == "head":
            parts = [part.unflatten(-1, (-1, E)) for part in parts]
        normed = [norm(part).flatten(1) for norm, part in zip(self.head_norms, parts, strict=True)]
        qkv[:, : (H + K) * E] = torch.cat(normed, dim=-1).view(-1, H + K, E)[..., self.order].flatten(1)


def attend_by_products(
    q_NKGE: Tensor, k_BSE: Tensor, v_BSE: Tensor, inputs: AttentionInputs, scale: float | None, cap: None
) -> Tensor:
    """softmax(scale q k + mask) v -> [B, G, E] with B = N K: two batches of products, for all heads of all rows.

    FlashAttention on a CPU takes twice as long for so few queries: it goes over them one head at a time.
    """
    scale = scale or q_NKGE.shape[-1] ** -0.5
    scores = torch.baddbmm(inputs.visible, q_NKGE.flatten(0, 1), k_BSE.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v_BSE)


class Buffer:
    """Memory for the result of a product, used again by the next: new memory would have to come into the caches."""

    def __init__(self) -> None:
        self.numbers: Tensor | None = None
        self.part: Tensor | None = None  # its first rows, as many as the last result had

    def rows(self, count: int, weight_t: Tensor) -> Tensor:
        if self.numbers is None or len(self.numbers) < count:
            self.numbers, self.part = weight_t.new_empty(count, weight_t.shape[1]), None
        if self.part is None or len(self.part) != count:
            self.part = self.numbers[:count]
        return self.part


class Views:
    """Views of a tensor, made once while it stays the same tensor: a view takes as long as a small operation."""

    def __init__(self, make: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self.make, self.whole, self.views = make, None, ()

    def __call__(self, whole: Tensor) -> tuple[Tensor, ...]:
        if whole is not self.whole:
            self.whole, self.views = whole, self.make(whole)
        return self.views


class Product:
    """x [N, in] -> x W^T + b of one Linear, or of several Linears with the same input as one product."""

    def __init__(
        self,
        linears: Sequence[nn.Module],
        dtype: torch.dtype,
        joined: bool,
        buffer: Buffer | None = None,
        order: Tensor | None = None,
    ) -> None:
        """buffer: where the result is written.   order: of the numbers in the result."""
        from minirlhf.adapters.quantised import QuantisedLinear

        bases = [getattr(linear, "base", linear) for linear in linears]
        self.modules: list[Callable[[Tensor], Tensor]] = []
        self.buffer, self.order = buffer, order
        if any(isinstance(base, QuantisedLinear) for base in bases) or (len(linears) > 1 and not joined):
            self.modules, self.dtype = list(linears), dtype  # a copy of these weights would take too much memory
            return
        weights = [linear.weight.detach().to(dtype) for linear in linears]
        biases = [base.bias for base in bases if getattr(base, "bias", None) is not None]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = torch.cat([bias.detach() for bias in biases]).to(dtype) if biases else None
        if order is not None:
            weight, self.bias = weight[order], None if self.bias is None else self.bias[order]
        self.dtype, self.packed = dtype, joined and packs(weight)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
        else:  # a product of few rows reads a transposed copy a third faster
            self.weight = weight.t().contiguous() if joined else weight.t()

    def __call__(self, x: Tensor) -> Tensor:
        if self.modules:
            parts = [module(x).to(self.dtype) for module in self.modules]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            return whole if self.order is None else whole.index_select(-1, self.order)
        x = x.to(self.dtype)
        if self.packed:
            if (N := len(x)) > MANY and N % 8:  # so that the numbers of rows are few
                return self(F.pad(x, (0, 0, 0, -N % 8)))[:N]
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        out = self.buffer and self.buffer.rows(len(x), self.weight)
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def added_to(self, residual: Tensor, x: Tensor, norm: nn.Module) -> Tensor:
        """residual + norm(product): one operation where the family has no norm on outputs."""
        plain = isinstance(norm, nn.Identity) and not self.modules and self.dtype == residual.dtype == x.dtype
        if plain and self.packed and len(x) <= MANY:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        if plain and not self.packed and self.bias is None:
            return residual.addmm_(x, self.weight)
        return residual + norm(self(x))


def packs(weight: Tensor) -> bool:
    """True if a CPU multiplies a few rows by this weight sooner once the weight lies in oneDNN's own order."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if weight.device.type != "cpu" or weight.numel() < PACKED or not known:
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32


def pairs_of(heads: Tensor) -> Tensor:
    """[N, heads, E] with the numbers of each pair side by side -> complex [N, heads, E / 2], the same memory.

    Half precision has no complex numbers: [N, heads, E / 2, 2].
    """
    pairs = heads.unflatten(-1, (-1, 2))
    return torch.view_as_complex(pairs) if heads.dtype in (torch.float32, torch.float64) else pairs


def turn(pairs: Tensor, rotation: Tensor) -> None:
    """`rope.rotate` in place.   rotation: [N, 1, E / 2] complex."""
    if pairs.is_complex():
        pairs.mul_(rotation)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))


def norm_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function of a norm; on a CPU torch's RMSNorm in fp32 takes seven operations, this function four."""
    if type(norm) is not RMSNorm or norm.weight.dtype != torch.float32 or norm.weight.device.type != "cpu":
        return norm
    width = norm.normalized_shape[0]
    scale, least = norm.weight.detach() * width**0.5, torch.tensor((width * (norm.eps or 0.0)) ** 0.5)

    def rms_norm(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return norm(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # hypot: the root of the sum of squares and of width * eps
        return (x * scale).div_(torch.hypot(length, least, out=length))

    return rms_norm
