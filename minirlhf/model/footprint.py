"""Bytes that a forward keeps for the backward pass, and bytes of head and cache, as arithmetic on a model's shape.

D width, H query heads, K key-value heads, E head width, V vocabulary. Norms and the residual stream are in fp32. Under
bf16 autocast, products and attention are in bf16, and each Linear keeps a cast copy of its input and of its weight.
"""

from __future__ import annotations

from minirlhf.losses.fused import CACHED_NUMBERS, MOST_COLUMNS
from minirlhf.losses.tiles import chunks_of
from minirlhf.model.config import ModelConfig

FP32, BF16 = 4, 2  # bytes of a number


def block_bytes(
    config: ModelConfig, layer: int, *, half: bool = False, rank: int = 0, row: int = 1, cpu: bool = True
) -> float:
    """Bytes for each token that autograd keeps of a block.

    half: bf16 autocast.   rank: of LoRA on every Linear of a frozen block; 0: all weights are trained.
    row:  tokens of a row. Only capped attention depends on it, because it keeps its scores.
    cpu:  its attention computes in fp32 under autocast too.
    """
    narrow, D = BF16 if half else FP32, config.hidden_size
    fused, gated = config.fused_projections, config.gated_mlp
    norms = norms_bytes(config, half, rank, before=2, after=2)
    # several Linears read one input; autocast makes a copy for each
    readers = narrow * D * (3 if half and not fused else 1)
    total = norms + readers + attention_bytes(config, layer, narrow, rank, row, cpu)
    total += mlp_bytes(config, layer, half, cpu)
    if rank:  # x A of each adapter, and under autocast a copy of the input of o_proj
        adapters = 4 if fused else 7 if gated else 6
        total += narrow * rank * adapters + (narrow * config.num_attention_heads * config.head_width if half else 0)
    return total


def mlp_bytes(config: ModelConfig, layer: int, half: bool, cpu: bool) -> float:
    """The input of the MLP, and each product and activation inside. A token passes k experts of a mixture."""
    one_step = cpu and config.hidden_act == "silu"  # which keeps no silu(gate)
    narrow, D, gated = BF16 if half else FP32, config.hidden_size, config.gated_mlp
    readers = narrow * D * (2 if half and gated and not config.fused_projections else 1)
    inside = narrow * (2 if not gated else 3 if one_step else 4)
    if not config.has_experts(layer):
        return readers + inside * config.intermediate_size
    k = config.num_experts_per_tok
    routing = FP32 * (D + config.num_experts + 1) + 32 * k  # probabilities, weights, and indices of 8 bytes
    return routing + k * (readers + narrow * D + inside * config.moe_intermediate_size)


def norms_bytes(config: ModelConfig, half: bool, rank: int, before: int, after: int) -> int:
    """Bytes that norms keep: `before` norms read the residual stream, `after` norms read a product."""
    stream = BF16 if half and rank else FP32
    product = BF16 if half and config.norm != "layer" else stream
    D, before, after = config.hidden_size, before * config.norm_before, after * config.norm_after
    return before * norm_bytes(config, D, stream) + after * norm_bytes(config, D, product)


def norm_bytes(config: ModelConfig, width: int, number: int = FP32, rows: int = 1) -> int:
    """A norm keeps its input, with `number` bytes for each number, and the mean or root of each row."""
    if config.norm == "layer":
        return number * (width + 2 * rows)
    return number * width + FP32 * rows


def attention_bytes(config: ModelConfig, layer: int, narrow: int, rank: int, row: int, cpu: bool) -> float:
    """Queries, keys, values, output and, for the fused kernel, a log-sum-exp of each head."""
    H, K = config.num_attention_heads, config.num_key_value_heads
    query, key = H * config.head_width, K * config.head_width
    inputs = query + 2 * key
    if config.fused_projections and config.uses_rope(layer):
        inputs += query + key  # rotated; the values are a view of the whole product
    total = narrow * (inputs + query) + FP32 * H
    if cpu and narrow < FP32 and config.attn_logit_softcapping is None:  # and the input of o_proj; adapters count it
        total = FP32 * (2 * query + 2 * key + H) + (0 if rank else narrow * query)
    if config.attn_logit_softcapping is not None:  # the scores after tanh and after softmax; keys for each query head
        total += FP32 * (2 * H * row - H) + narrow * 2 * (query - key)
    if config.qk_norm != "none":
        heads = (H, K) if config.qk_norm == "head" else (1, 1)
        number = FP32 if config.norm == "layer" else narrow
        total += norm_bytes(config, query, number, heads[0]) + norm_bytes(config, key, number, heads[1])
    return total


def kept_bytes(
    config: ModelConfig,
    tokens: int,
    *,
    read: int | None = None,
    every: int = 0,
    half: bool = False,
    rank: int = 0,
    row: int = 1,
    cpu: bool = True,
) -> float:
    """Bytes that the forward of a trunk keeps for `tokens` tokens, without weights, their cast copies and its output.

    read:  tokens that the caller reads; the last block computes no others after its attention. None: all.
    every: checkpointing of every n-th block; 0: of none. Such a block keeps its input, and the backward pass computes
        one block at a time again.
    """
    D, last = config.hidden_size, config.num_hidden_layers - 1
    blocks = [tokens * block_bytes(config, layer, half=half, rank=rank, row=row, cpu=cpu) for layer in range(last + 1)]
    read = tokens if read is None else read
    if read < tokens:
        query = (BF16 if half else FP32) * config.num_attention_heads * config.head_width  # the attention of these
        blocks[last] -= (tokens - read) * after_attention_bytes(config, last, half, rank, cpu) - read * query
    if every:
        again = blocks[last] if last % every == 0 else 0  # of the last block, else it is free before
        if every == 1 and last:
            again = max(again, blocks[0] - FP32 * D * tokens)
        blocks = [FP32 * D * tokens if layer % every == 0 else size for layer, size in enumerate(blocks)] + [again]
    return sum(blocks) + tokens * 8 + read * norm_bytes(config, D)  # ids; the last norm


def after_attention_bytes(config: ModelConfig, layer: int, half: bool, rank: int, cpu: bool) -> float:
    """The part of `block_bytes` of the norms and the MLP that follow attention."""
    return norms_bytes(config, half, rank, before=1, after=2) + mlp_bytes(config, layer, half, cpu)


def head_bytes(config: ModelConfig, tokens: int, *, half: bool = False, trained: bool = True) -> float:
    """Bytes of the head at the start of the backward pass, for `tokens` learned tokens: a chunk of logits, the hidden
    states, and the gradients of head and hidden states.
    """
    V, D = config.vocab_size, config.hidden_size
    rows = chunks_of(tokens, min(V, MOST_COLUMNS))[0].stop
    chunk = rows * V * (FP32 + (2 * BF16 if half else 0)) + 2 * FP32 * min(CACHED_NUMBERS, rows * V)  # and its powers
    weight = V * D * ((FP32 if trained else 0) + (BF16 if half else 0))
    return chunk + weight + 2 * tokens * D * (BF16 if half else FP32)


def cache_bytes(config: ModelConfig, rows: int, columns: int, half: bool = False) -> float:
    """Bytes of the keys and values of `rows` rows of `columns` tokens, while completions are sampled."""
    numbers = 2 * config.num_hidden_layers * rows * columns * config.num_key_value_heads * config.head_width
    return numbers * (BF16 if half else FP32)


def parameters(config: ModelConfig) -> int:
    """The number of weights in the matrices of a model: all its parameters but norms and biases."""
    return head_parameters(config) + block_parameters(config)


def head_parameters(config: ModelConfig) -> int:
    """Weights of the embedding and, if it is not tied, of the head."""
    return config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)


def block_parameters(config: ModelConfig) -> int:
    """Weights of all blocks."""
    width, experts = config.hidden_size, [config.has_experts(layer) for layer in range(config.num_hidden_layers)]
    matrices = 3 if config.gated_mlp else 2
    attention = 2 * width * config.head_width * (config.num_attention_heads + config.num_key_value_heads)
    mlp = matrices * width * config.intermediate_size
    mixture = config.num_experts * (matrices * width * config.moe_intermediate_size + width)  # experts and router
    return sum(attention + (mixture if has_experts else mlp) for has_experts in experts)
