"""Rows that begin alike form a tree: a pass computes the tokens that they share once, with exact gradients.

Completions of one prompt, a pair of one prompt and rows with one system prompt begin with the same tokens. In a causal
model the hidden states of these tokens are the same too. The tree of the rows is laid out depth first. So the
descendants of a node stand behind it, side by side:

    [ prompt 1 | completion | completion | prompt 2 | ... ]

A token attends to its own node causally, and to each node above it wholly. The two softmaxes are joined by their
log-sum-exp, so no key is copied. B rows, N tokens of the tree, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

LEAST = 64  # tokens that a node must save; with fewer, the further calls of attention cost more


class Node(NamedTuple):
    """Tokens [start, stop) of the packed row. The tokens of the node's descendants follow, up to `end`."""

    row: int  # the first of its rows
    columns: tuple[int, int]  # of that row
    start: int
    stop: int
    end: int


def common_beginnings(input_ids: Tensor, attention_mask: Tensor) -> tuple[list[int], list[int]]:
    """(rows in lexical order, tokens that each of these rows but the first shares with the row before it)."""
    ids, real = input_ids.numpy(), attention_mask.numpy()  # numpy's small operations take a third of torch's time
    width, text = 8 * ids.shape[1], ids.astype(">i8").tobytes()  # the bytes are in the order of the ids
    texts = [text[start : start + width] for start in range(0, len(text), width)]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    ids, real = ids[order], real[order]
    same = (ids[1:] == ids[:-1]) & real[1:] & real[:-1]
    return order, numpy.logical_and.accumulate(same, axis=1).sum(-1).tolist()


def prefix_tree(order: Sequence[int], common: Sequence[int], lengths: Sequence[int]) -> tuple[list[Node], list[list]]:
    """The nodes, depth first, and for each row the numbers of the nodes on its path.   lengths: by row."""
    nodes: list[Node] = []
    paths: list[list[int]] = [[] for _ in order]

    def grow(first: int, last: int, depth: int, start: int) -> int:
        """Lay out the rows order[first:last] from `start` on -> the end. The rows share `depth` tokens above."""
        between = common[first : last - 1]
        shared = min(between, default=lengths[order[first]])
        if last - first > 1 and (last - first - 1) * (max(between) - depth) < LEAST:
            for at in range(first, last):
                start = grow(at, at + 1, depth, start)
            return start
        is_node = last - first == 1 or (last - first - 1) * (shared - depth) >= LEAST
        if is_node:
            number, stop = len(nodes), start + shared - depth
            nodes.append(Node(order[first], (depth, shared), start, stop, stop))
            for at in range(first, last):
                paths[order[at]].append(number)
            start, depth = stop, shared
        if last - first > 1:
            cuts = [first, *(first + 1 + i for i, n in enumerate(between) if n == shared), last]
            for one, other in zip(cuts, cuts[1:], strict=False):
                start = grow(one, other, depth, start)
        if is_node:
            nodes[number] = nodes[number]._replace(end=start)
        return start

    if order:
        grow(0, len(order), 0, 0)
    return nodes, paths


class TreeAttention(torch.autograd.Function):
    """q [1, H, N, E], k and v [1, K, N, E] -> [1, H, N, E].

    Each part (a node on itself, its descendants on the node) is a call of the CPU's FlashAttention. Its backward needs
    the output and the log-sum-exp of the whole softmax, and gives the part's exact gradients (Dao 2023,
    arXiv:2307.08691, section 3.1).
    """

    @staticmethod
    def forward(ctx, q, k, v, nodes, scale):
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.empty_like(q, dtype=wide), q.new_empty(q.shape[:-1], dtype=wide)
        for count, own in _runs(nodes):
            part, part_lse = _flash(*(_rows(x, own, count) for x in (q, k, v)), 0.0, True, scale=scale)
            _rows(out, own, count).copy_(part)
            _rows(lse, own, count).copy_(part_lse)
        for own, below in _inner(nodes):
            part, part_lse = _flash(q[:, :, below], k[:, :, own], v[:, :, own], 0.0, False, scale=scale)
            _join(out[:, :, below], lse[:, :, below], part, part_lse)
        ctx.nodes, ctx.scale = nodes, scale
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for count, own in _runs(ctx.nodes):
            inputs = (_rows(x, own, count) for x in (grad, q, k, v, out, lse))
            parts = _flash_backward(*inputs, 0.0, True, scale=ctx.scale)
            for x, part in zip(grads, parts, strict=True):
                _rows(x, own, count).copy_(part)
        for own, below in _inner(ctx.nodes):
            inputs = grad[:, :, below], q[:, :, below], k[:, :, own], v[:, :, own], out[:, :, below], lse[:, :, below]
            parts = _flash_backward(*inputs, 0.0, False, scale=ctx.scale)
            for x, at, part in zip(grads, (below, own, own), parts, strict=True):
                x[:, :, at] += part
        return *grads, None, None


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _runs(nodes: Sequence[Node]) -> list[tuple[int, slice]]:
    """(nodes, their tokens): neighbours of equal length go together."""
    runs, start = [], 0
    for length, same in groupby(node.stop - node.start for node in nodes):
        count = len(list(same))
        if length:
            runs.append((count, slice(start, start + count * length)))
        start += count * length
    return runs


def _inner(nodes: Sequence[Node]) -> list[tuple[slice, slice]]:
    """(tokens of the node, tokens of its descendants) of each node that has descendants."""
    return [(slice(node.start, node.stop), slice(node.stop, node.end)) for node in nodes if node.end > node.stop]


def _rows(x: Tensor, part: slice, count: int) -> Tensor:
    """The part of [1, heads, N, ...] as `count` rows: [count, heads, length, ...], a view."""
    return x[0, :, part].unflatten(1, (count, -1)).transpose(0, 1)


def _join(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Add a part of the keys to the softmax, in place: out [1, H, n, E], lse [1, H, n]."""
    joined = torch.logaddexp(lse, more_lse)
    out.mul_((lse - joined).exp_().unsqueeze(-1)).addcmul_(more, (more_lse - joined).exp_().unsqueeze(-1))
    lse.copy_(joined)
