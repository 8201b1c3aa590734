"""An encoder-decoder: the encoder reads the prompt in both directions, the decoder writes the completion.

Raffel et al. 2020, arXiv:1910.10683. Modules have the names of the files of T5, so no table of names is needed.

B sequences, T tokens of the decoder, S tokens of the prompt, K columns of keys, D width, H heads, E head width, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.extras.seq2seq.config import Seq2SeqConfig
from minirlhf.generation.completion import SamplingConfig

ACTIVATIONS = {"relu": F.relu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu}


def buckets(distance: Tensor, config: Seq2SeqConfig, both_ways: bool) -> Tensor:
    """Distance from a query to a key in tokens, negative for earlier keys -> the number of its bucket, int64.

    Half of the buckets hold one distance each. The others grow as the logarithm of the distance, and the last holds all
    distances from `max_distance` on. An encoder has half of the buckets for later keys; in a decoder no later key is
    seen. Raffel et al. 2020, section 2.1.
    """
    n, first = config.num_buckets, torch.zeros_like(distance)
    if both_ways:
        n //= 2
        first = (distance > 0) * n
    distance = distance.abs() if both_ways else -distance.clamp(max=0)
    exact = n // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    far = (exact + (share * (n - exact)).long()).clamp(max=n - 1)
    return first + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """x [B, T, D] attends to keys and values -> [B, T, D]. Scores are not divided by the root of E."""

    def __init__(self, config: Seq2SeqConfig, positions: bool = False) -> None:
        """positions: make the table of position biases in this attention. All blocks of the stack use this table."""
        super().__init__()
        self.head_dim, inner = config.head_dim, config.num_attention_heads * config.head_dim
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.hidden_size, bias=False)
        if positions:
            self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, K, D] -> keys and values, [B, H, K, E] each."""
        return self._heads(self.k(x)), self._heads(self.v(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """bias: [1 or B, 1 or H, T, K], added to the scores; -inf where a key is not seen."""
        attended = F.scaled_dot_product_attention(self._heads(self.q(x)), keys, values, attn_mask=bias, scale=1.0)
        return self.o(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """[..., D] -> [..., D], with a gate (T5 1.1) or without (T5)."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.act, wide = ACTIVATIONS[config.hidden_act], partial(nn.Linear, bias=False)
        if config.gated_mlp:
            self.wi_0, self.wi_1 = (wide(config.hidden_size, config.intermediate_size) for _ in range(2))
        else:
            self.wi = wide(config.hidden_size, config.intermediate_size)
        self.wo = wide(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.wi_0(x)) * self.wi_1(x) if hasattr(self, "wi_0") else self.act(self.wi(x))
        return self.wo(inner)


class SubLayer(nn.Module):
    """A norm and a part (self-attention, attention to the prompt, or MLP), under the part's name in T5's files."""

    def __init__(self, config: Seq2SeqConfig, name: str, part: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, part)
        self.layer_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def part(self) -> nn.Module:
        return getattr(self, self.name)


class Block(nn.Module):
    """Self-attention, in a decoder attention to the prompt, and MLP; each is added to the residual stream."""

    def __init__(self, config: Seq2SeqConfig, decodes: bool, first: bool) -> None:
        super().__init__()
        layers = [SubLayer(config, "SelfAttention", Attention(config, positions=first))]
        layers += [SubLayer(config, "EncDecAttention", Attention(config))] if decodes else []
        self.layer = nn.ModuleList([*layers, SubLayer(config, "DenseReluDense", MLP(config))])

    def forward(
        self, x: Tensor, bias: Tensor, seen: list[Tensor], prompt: Sequence[Tensor] = (), prompt_bias: Any = None
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D].

        bias:   [1 or B, H, T, K] of the self-attention.
        seen:   keys and values [B, H, K - T, E] of earlier tokens, or empty; this list takes the new ones too.
        prompt: in a decoder the prompt's keys and values in this block, with prompt_bias [B, 1, 1, S].
        """
        own, normed = self.layer[0].part, self.layer[0].layer_norm(x)
        new = own.keys_and_values(normed)
        seen[:] = [torch.cat(pair, 2) for pair in zip(seen, new, strict=True)] if seen else new
        x = x + own(normed, *seen, bias)
        if prompt:
            x = x + self.layer[1].part(self.layer[1].layer_norm(x), *prompt, prompt_bias)
        return x + self.layer[-1].part(self.layer[-1].layer_norm(x))


class Stack(nn.Module):
    """The blocks of the encoder or of the decoder, and a norm."""

    def __init__(self, config: Seq2SeqConfig, decodes: bool) -> None:
        super().__init__()
        self.config, self.decodes = config, decodes
        count = config.num_decoder_layers if decodes else config.num_hidden_layers
        self.block = nn.ModuleList(Block(config, decodes, first=i == 0) for i in range(count))
        self.final_layer_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Embeddings [B, S, D], mask [B, S] bool with padding on the right -> hidden states [B, S, D]."""
        S = x.shape[1]
        bias = self.position_bias(range(S), S, x.device) + hides(mask, x.dtype)
        for block in self.block:
            x = block(x, bias, [])
        return self.final_layer_norm(x)

    def position_bias(self, queries: range, keys: int, device: torch.device) -> Tensor:
        """[1, H, T, K]: the learned bias of each distance; in a decoder -inf for later keys."""
        distance = torch.arange(keys, device=device) - torch.arange(queries.start, queries.stop, device=device)[:, None]
        table = self.block[0].layer[0].part.relative_attention_bias
        bias = table(buckets(distance, self.config, both_ways=not self.decodes)).permute(2, 0, 1)[None]
        return bias.masked_fill(distance > 0, -torch.inf) if self.decodes else bias


class Cache:
    """All that the decoder has read: the prompts once, and the tokens up to now. B rows."""

    def __init__(self, prompts: Sequence[tuple[Tensor, Tensor]], prompt_bias: Tensor) -> None:
        """prompts: for each block keys and values [B, H, S, E].   prompt_bias: [B, 1, 1, S], -inf at padding."""
        self.prompts, self.prompt_bias = list(prompts), prompt_bias
        self.blocks: list[list[Tensor]] = [[] for _ in prompts]  # keys and values [B, H, width, E] once a token is read
        self.width = 0  # tokens that the decoder has read; the same for all rows

    @property
    def lengths(self) -> Tensor:
        return torch.full((len(self.prompt_bias),), self.width)

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, such as the rows of unfinished completions."""
        self.prompts = [(keys[rows], values[rows]) for keys, values in self.prompts]
        self.blocks = [[x[rows] for x in block] for block in self.blocks]
        self.prompt_bias = self.prompt_bias[rows]


class Seq2Seq(nn.Module):
    """An encoder, a decoder and a language-model head. The head may share its weight with the embedding."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder, self.decoder = Stack(config, decodes=False), Stack(config, decodes=True)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """T5's: each product has the variance of its input, and small queries take the place of the scale of scores."""
        D, inner = self.config.hidden_size, self.config.num_attention_heads * self.config.head_dim
        small = {"q": (D * self.config.head_dim) ** -0.5, "o": inner**-0.5, "wo": self.config.intermediate_size**-0.5}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=small.get(name.split(".")[-1], D**-0.5))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=D**-0.5 if "relative" in name else 1.0)

    @property
    def device(self) -> torch.device:
        return self.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.shared.weight.dtype

    @property
    def head_weight(self) -> Tensor:
        """[V, D], computed at each access if the head is tied and T5 scales its outputs."""
        weight = self.shared.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return weight * self.config.hidden_size**-0.5 if self.config.scale_outputs else weight

    def encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """ids [B, S], mask [B, S] bool with padding on the right -> hidden states of the encoder [B, S, D]."""
        return self.encoder.encode(self.shared(prompt_ids), prompt_mask)

    def cache(self, encoded: Tensor, prompt_mask: Tensor) -> Cache:
        """The encoder's output [B, S, D] -> a cache that knows the prompts, and no token of a completion."""
        layers = [block.layer[1].part for block in self.decoder.block]
        return Cache([layer.keys_and_values(encoded) for layer in layers], hides(prompt_mask, encoded.dtype))

    def decode(self, ids: Tensor, cache: Cache) -> Tensor:
        """Append tokens [B, T] to the cache -> hidden states [B, T, D]; position t scores token t + 1."""
        x, start, cache.width = self.shared(ids), cache.width, cache.width + ids.shape[1]
        bias = self.decoder.position_bias(range(start, cache.width), cache.width, x.device)
        for block, seen, prompt in zip(self.decoder.block, cache.blocks, cache.prompts, strict=True):
            x = block(x, bias, seen, prompt, cache.prompt_bias)
        return self.decoder.final_layer_norm(x)

    def forward(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Append tokens [B, T] to the cache -> logits [B, T, V] of the tokens after each."""
        return self.logits(self.decode(input_ids, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight)

    def read_prompts(
        self, prompts: Sequence[Sequence[int]], columns: int, config: SamplingConfig, device: torch.device
    ) -> tuple[Cache, Tensor]:
        """Ragged prompts -> their cache, and the logits [B, V] of the first tokens; `generate` calls this method.

        The encoder reads each distinct prompt once, in groups of similar length.   columns: not read, the cache grows.
        """
        numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        distinct, S, parts, order = list(numbers), max(map(len, numbers)), [], []
        for group in microbatches([len(prompt) for prompt in distinct], config.microbatch_tokens):
            ids, mask, _ = pad_sequences([distinct[i] for i in group], [()] * len(group), 0, device)
            parts.append(F.pad(self.encode(ids, mask), (0, 0, 0, S - ids.shape[1])))
            order += group
        encoded = torch.cat(parts)[torch.tensor(order, device=device).argsort()]
        lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)
        cache = self.cache(encoded, torch.arange(S, device=device) < lengths[:, None])
        cache.select(torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=device))
        start = torch.full((len(prompts), 1), self.config.start_id, device=device)
        return cache, self(start, cache)[:, 0]


def hides(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask [B, S] -> [B, 1, 1, S], -inf where it is False and else 0."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[:, None, None]
