"""Attention of a packed batch with short rows, as products of small matrices, for the queries that are read alone.

Each key-value head of a row is a matrix of its tokens, and the query heads that share it stand under one another. So
a head of few tokens is one small product; FlashAttention would spend its time on the set-up of its blocks. Tokens are
gathered by their number in the packed row, so rows may share tokens.

B rows of up to T tokens and up to R queries, N packed tokens, n queries, D width, K key-value heads, G query heads for
each of them, H = K G, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minirlhf.model.context import AttentionInputs
from minirlhf.model.rope import rotate


class ShortRows(NamedTuple):
    """The places of packed queries, keys and values in the padded matrices, and the way back."""

    keys: Tensor  # [B K T] of the numbers of keys among all N K; any for padding
    own: Tensor | None  # [N K] of the place of each key among all B K T; None if rows share tokens
    queries: Tensor  # [B K G R] of the numbers of queries among all n H; any for padding
    picked: Tensor  # [n H] of the place of each query among all B K G R
    mask: Tensor  # [1 or B K, G R, T]: 0, and -inf where a query must not look
    shape: tuple[int, int, int, int]  # B, T, H, K


def short_rows(
    heads: tuple[int, int], lengths: Sequence[int], T: int, places: Tensor, index: Tensor | None, window: int | None
) -> ShortRows:
    """The layout in which the packed tokens are the queries.

    heads: H and K.   lengths: [B].   places: [N] of the packed tokens among all B T.   index: [B T] of the packed token
    at each place, if rows share tokens.   window: [tokens] that a query sees; None: all before it.
    """
    # numpy, because its small operations take a third of torch's time
    (H, K), B, (row, column) = heads, len(lengths), divmod(places.numpy(), T)
    if index is None:  # the tokens of a row stand side by side
        ends = numpy.array(lengths).cumsum()
        at = (numpy.concatenate(([0], ends[:-1]))[:, None] + numpy.arange(T)).clip(max=ends[-1] - 1)
    else:
        at = index.numpy().reshape(B, T)
    own = torch.from_numpy(_among(row, column, K, T)) if index is None else None
    numbers = (torch.from_numpy(x) for x in (_numbers(at, H), _among(row, column, H, T)))
    mask = _mask(numpy.arange(T)[None], T, window, 1, H // K)
    return ShortRows(torch.from_numpy(_numbers(at, K)), own, *numbers, mask, (B, T, H, K))


def reading(rows: ShortRows, places: Tensor, window: int | None) -> ShortRows:
    """The same keys for the queries at these places [n] among all B T, in any order."""
    (B, T, H, K), (row, column) = rows.shape, divmod(places.numpy(), rows.shape[1])
    count, order, numbers = numpy.bincount(row, minlength=B), row.argsort(kind="stable"), numpy.arange(len(row))
    among = numpy.empty_like(row)  # number of each query among those of its row
    among[order] = numbers - (count.cumsum() - count)[row[order]]
    R = int(count.max())
    number, last = numpy.zeros((2, B, R), dtype=numpy.int64)
    number[row, among], last[row, among] = numbers, column
    queries, picked = (torch.from_numpy(x) for x in (_numbers(number, H), _among(row, among, H, R)))
    return rows._replace(queries=queries, picked=picked, mask=_mask(last, T, window, K, H // K))


def attend_short(attention: nn.Module, x_BTD: Tensor, inputs: AttentionInputs, read: Tensor | None) -> Tensor:
    """Attention without its output projection: x [1, N, D] -> [1, N, H E], or [1, n, H E] of the tokens `read`."""
    some, fused = read is not None, attention.config.fused_projections
    q, k, v = attention.project(x_BTD, x_BTD.index_select(1, read) if some and not fused else x_BTD)
    if some and fused:
        q = q.index_select(1, read)
    if attention.uses_rope:
        angles = inputs.cos, inputs.sin
        k = rotate(k, *angles)
        q = rotate(q, *(x.index_select(1, read) for x in angles) if some else angles)
    with torch.autocast("cpu", enabled=False):  # in fp32, as in `attend`
        wide = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
        out = ShortAttention.apply(*wide, inputs.packing.short, attention.config.attention_scale)
    return out.to(q.dtype).flatten(2)


class ShortAttention(torch.autograd.Function):
    """q [1, n, H, E], k and v [1, N, K, E] -> [1, n, H, E]."""

    @staticmethod
    def forward(ctx, q, k, v, rows, scale):
        ctx.rows, ctx.scale = rows, q.shape[-1] ** -0.5 if scale is None else scale
        queries = _gather(q, rows.queries, rows)
        keys, values = (_gather(x, rows.keys, rows) for x in (k, v))
        mask = rows.mask.to(q.dtype)
        weights = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=ctx.scale).softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.shapes = q.shape, k.shape
        return torch.bmm(weights, values).flatten(0, 1).index_select(0, rows.picked).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        queries, keys, values, weights = ctx.saved_tensors
        rows, (q_shape, k_shape) = ctx.rows, ctx.shapes
        with torch.autocast("cpu", enabled=False):
            grad = torch.zeros_like(queries).flatten(0, 1).index_copy_(0, rows.picked, grad.flatten(0, 2))
            grad = grad.view(queries.shape)
            grad_values = torch.bmm(weights.transpose(1, 2), grad)
            grad_weights = torch.bmm(grad, values.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_queries = torch.bmm(grad_scores, keys).mul_(ctx.scale)
            grad_keys = torch.bmm(grad_scores.transpose(1, 2), queries).mul_(ctx.scale)
        grad_q = grad_queries.flatten(0, 1).index_select(0, rows.picked).view(q_shape)
        return grad_q, *(_scatter(x, rows, k_shape) for x in (grad_keys, grad_values)), None, None


def _gather(x: Tensor, numbers: Tensor, rows: ShortRows) -> Tensor:
    """[1, tokens, heads, E] -> [B K, vectors, E]."""
    return x.reshape(-1, x.shape[-1]).index_select(0, numbers).view(rows.shape[0] * rows.shape[3], -1, x.shape[-1])


def _scatter(x: Tensor, rows: ShortRows, shape: torch.Size) -> Tensor:
    """The gradient of keys [B K, T, E] -> [1, N, K, E]. Padding has none, because nothing that is read looks at it."""
    x = x.flatten(0, 1)
    if rows.own is not None:
        return x.index_select(0, rows.own).view(shape)
    return x.new_zeros(shape[1] * shape[2], shape[3]).index_add_(0, rows.keys, x).view(shape)


def _numbers(tokens: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Numbers of tokens [B, T] -> numbers of their vectors [B heads T]."""
    return (tokens[:, None] * heads + numpy.arange(heads)[:, None]).ravel()


def _among(row: numpy.ndarray, column: numpy.ndarray, heads: int, width: int) -> numpy.ndarray:
    """Row and column of tokens [n] -> places of their vectors among all B heads width, [n heads]."""
    return ((row * (heads * width) + column)[:, None] + numpy.arange(heads) * width).ravel()


def _mask(last: numpy.ndarray, T: int, window: int | None, K: int, G: int) -> Tensor:
    """The columns of queries [B, R] -> [B K, G R, T], 0 or, where a query must not look, -inf."""
    distance = last[:, :, None] - numpy.arange(T)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    mask = torch.from_numpy(numpy.where(hidden, numpy.float32(-numpy.inf), numpy.float32(0)))
    return mask[:, None, None].expand(-1, K, G, -1, -1).flatten(0, 1).flatten(1, 2)
