"""Batches without their padding: the real tokens of all rows stand in one row, so no padding enters a product.

Tokens that several rows share at their beginning stand there once (prefix_tree.py).

B rows, T tokens, N real tokens, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn

from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.model.context import AttentionInputs, ForwardContext
from minirlhf.model.prefix_tree import LEAST, Node, TreeAttention, common_beginnings, prefix_tree
from minirlhf.model.rope import rope_tables
from minirlhf.model.row_lengths import carried, lengths_of
from minirlhf.model.short_rows import ShortRows, attend_short, reading, short_rows
from minirlhf.model.varlen import TOLERANCE, WINDOW, attend_varlen, kernel_dtype, supported

GPU = "cuda"  # the device whose batches are packed for varlen attention
SHORT = 64  # tokens of the longest row, up to which attention is computed on padded rows
SAVED = 1 / 16  # of the tokens, that short rows must share; with fewer, finding and adding them up costs more
WORTH = 0.95  # of the tokens; with more real tokens than this, moving them costs more than their padding


class Packing(NamedTuple):
    """The places of the real tokens in a padded batch."""

    shape: tuple[int, int]  # (B, T)
    lengths: tuple[int, ...]  # real tokens per row
    places: Tensor  # [N] of the packed tokens among all B * T
    index: Tensor | None = None  # [B * T] of the packed token that stands at each place, if rows share tokens
    nodes: tuple[Node, ...] = ()  # of the tree of the rows, if long rows share tokens
    short: ShortRows | None = None  # in `AttentionInputs`: how short rows attend
    bounds: Tensor | None = None  # on a GPU, [rows with tokens + 1] int32: the packed token at which each begins, and N

    attended = staticmethod(attend_short)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [1, N, ...]."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, N, ...] -> [B, T, ...]. Padding is 0 or, if rows share tokens, junk."""
        B, T = self.shape
        if self.index is not None:
            return x[0].index_select(0, self.index).unflatten(0, (B, T))
        return x.new_zeros(B * T, *x.shape[2:]).index_copy(0, self.places, x[0]).unflatten(0, (B, T))

    def index_of(self, places: Tensor) -> Tensor:
        """The packed tokens at these places among all B * T; any token for padding."""
        if self.index is not None:
            return self.index[places]
        return torch.searchsorted(self.places, places).clamp(max=len(self.places) - 1)

    def reading(self, context: ForwardContext, places: Tensor) -> ForwardContext:
        """The context of a block of which the tokens at these places [n] among all B * T are read."""

        def at_places(inputs: AttentionInputs) -> AttentionInputs:
            rows = inputs.packing.short and reading(inputs.packing.short, places, inputs.window)
            return inputs._replace(packing=inputs.packing._replace(short=rows))

        inputs = {name: at_places(x) for name, x in context.inputs.items()}
        return context._replace(read=self.index_of(places), inputs=inputs)


def packing_of(trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Packing | None:
    """The packing of a batch for a `Trunk`; None if it is not worth it, or on a device that wants whole rectangles.

    A mixture of experts is not packed: its router loss reads the routers' logits as [B, T].
    """
    if attention_mask is None or trunk.config.num_experts:
        return None
    if attention_mask.device.type == GPU:
        return _for_varlen(trunk, attention_mask)
    if attention_mask.device.type != "cpu":
        return None
    lengths = tuple(attention_mask.sum(-1).tolist())
    tokens, most = sum(lengths), WORTH * attention_mask.numel()
    if not tokens:
        return None
    if shared := (_tree_of if input_ids.shape[1] > SHORT else _shared)(trunk, input_ids, attention_mask, lengths):
        return shared
    if tokens > most:
        return None
    return Packing(tuple(attention_mask.shape), lengths, attention_mask.flatten().nonzero()[:, 0])


def _for_varlen(trunk: nn.Module, attention_mask: Tensor) -> Packing | None:
    """The packing on a GPU, where rows share no tokens. The host makes it of the lengths and reads no other number."""
    config, device = trunk.config, attention_mask.device
    dtype = kernel_dtype(device, trunk.embed_tokens.weight.dtype)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_width
    windows = (None, WINDOW) if SLIDING in config.layer_types else (None,)
    if config.attn_logit_softcapping is not None or not all(
        supported(device, dtype, heads, window, config.attention_scale) for window in windows
    ):
        return None
    lengths, T = lengths_of(attention_mask), attention_mask.shape[1]
    if not 0 < sum(lengths) <= WORTH * attention_mask.numel():
        return None
    places = numpy.flatnonzero(numpy.arange(T) < numpy.array(lengths)[:, None])
    bounds = numpy.cumsum([0, *(n for n in lengths if n)], dtype=numpy.int32)
    places, bounds = (carried(torch.from_numpy(x), device) for x in (places, bounds))
    return Packing(tuple(attention_mask.shape), lengths, places, bounds=bounds)


def _tree_of(trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor, lengths: Sequence[int]) -> Packing | None:
    """The packing in which rows share their beginning; None if no rows do, or if their tokens would then differ.

    A bounded score or a window needs more than a joined softmax.
    """
    order, common = common_beginnings(input_ids, attention_mask)
    config = trunk.config
    windowed = SLIDING in config.layer_types and config.sliding_window < max(lengths)
    if sum(common) < LEAST or windowed or config.attn_logit_softcapping is not None:
        return None
    nodes, paths = prefix_tree(order, common, lengths)
    if len(nodes) == len(order):
        return None
    if _drops(trunk):
        return None
    T = attention_mask.shape[1]
    places = torch.cat([torch.arange(*node.columns) + node.row * T for node in nodes])
    rows = []
    for path in paths:
        row = torch.cat([torch.arange(nodes[n].start, nodes[n].stop) for n in path])
        rows.append(nn.functional.pad(row, (0, T - len(row))))
    return Packing((len(rows), T), tuple(lengths), places, torch.cat(rows), tuple(nodes))


def _shared(trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor, lengths: Sequence[int]) -> Packing | None:
    """The packing in which short rows share their beginning; None if that is not worth it.

    In lexical order, a row shares its first tokens with the row before it: these are the tokens of the last row above
    that has its own there.
    """
    order, common = common_beginnings(input_ids, attention_mask)
    if sum(common) < SAVED * sum(lengths) or _drops(trunk):
        return None
    T = attention_mask.shape[1]
    order, common = numpy.array(order), numpy.array([0, *common])
    row, column = (attention_mask.numpy()[order] & (numpy.arange(T) >= common[:, None])).nonzero()
    number, index = numpy.zeros((2, *attention_mask.shape), dtype=numpy.int64)
    number[row, column] = numpy.arange(len(row))
    index[order] = numpy.maximum.accumulate(number)
    places, index = (torch.from_numpy(x) for x in (order[row] * T + column, index.ravel()))
    return Packing(tuple(attention_mask.shape), tuple(lengths), places, index)


def _drops(trunk: nn.Module) -> bool:
    """Whether there is dropout: it draws other zeros for each row."""
    return torch.is_grad_enabled() and any(isinstance(m, nn.Dropout) and m.training and m.p for m in trunk.modules())


def packed_context(config: ModelConfig, packing: Packing) -> ForwardContext:
    """Positions and angles of the real tokens. Each row's positions begin at 0."""
    T, device = packing.shape[1], packing.places.device
    positions = (packing.places % T)[None]
    is_short = T <= SHORT and config.attn_logit_softcapping is None and packing.bounds is None
    inputs = {}
    for layer_type in {*config.layer_types} or {FULL}:
        cos, sin = (table[positions].unsqueeze(2) for table in rope_tables(config, layer_type, T, device))
        window = config.sliding_window if layer_type == SLIDING else None
        if is_short:
            heads = config.num_attention_heads, config.num_key_value_heads
            rows = short_rows(heads, packing.lengths, T, packing.places, packing.index, window)
            packing = packing._replace(short=rows)
        inputs[layer_type] = AttentionInputs(cos, sin, None, packing, window)
    return ForwardContext(positions, inputs, None, True)


def attend_each(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs, *options: float | None
) -> Tensor:
    """`attend` within each row of a packed batch: [1, heads, N, E] each -> [1, H, N, E].

    Neighbours of equal length go together, and nothing between two rows is computed. Short rows come here with bounded
    scores alone, and are padded again: one call is then faster than many. A GPU attends to all rows in one call, except
    for numbers of a dtype that its kernel does not take.
    """
    packing, outs = inputs.packing, []
    if packing.bounds is not None and kernel_dtype(q.device, q.dtype) in TOLERANCE:
        return attend_varlen(q, k, v, packing.bounds, max(packing.lengths), inputs.window, options[0])
    if packing.nodes:
        return TreeAttention.apply(q, k, v, packing.nodes, options[0])
    if packing.shape[1] <= SHORT:
        padded = (packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        visible = _window(packing.shape[1], inputs)
        out = attend(*padded, inputs._replace(visible=visible, packing=None), *options)
        return packing.pack(out.transpose(1, 2)).transpose(1, 2)
    runs = [(length, len(list(rows))) for length, rows in groupby(n for n in packing.lengths if n)]
    # one split, because the backward pass of each slice would fill and add a gradient of all N tokens
    parts = zip(*(x.squeeze(0).split([n * count for n, count in runs], dim=1) for x in (q, k, v)), strict=True)
    for (length, count), part in zip(runs, parts, strict=True):
        q_n, k_n, v_n = (x.unflatten(1, (count, length)).transpose(0, 1) for x in part)
        out = attend(q_n, k_n, v_n, inputs._replace(visible=_window(length, inputs), packing=None), *options)
        outs.append(out.transpose(0, 1).flatten(1, 2))
    return torch.cat(outs, dim=1)[None]


def _window(length: int, inputs: AttentionInputs) -> Tensor | None:
    """The mask [1, 1, length, length] of a sliding window; None if causal attention alone is meant."""
    if inputs.window is None or inputs.window >= length:
        return None
    at = torch.arange(length, device=inputs.cos.device)
    distance = at[:, None] - at
    return ((distance >= 0) & (distance < inputs.window))[None, None]
