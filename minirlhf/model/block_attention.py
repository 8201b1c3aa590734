"""Causal attention of long rows of equal length, a block of queries at a time.

As in FlashAttention (Dao 2023, arXiv:2307.08691) the backward pass computes the scores again. A block's scores stay in
the cache, so no loop over keys is needed; the query heads of a key-value head are one matrix.

B rows, T tokens, H query heads, K key-value heads, G = H / K, E head width; t queries of a block, which see S keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minirlhf.losses.products import wins
from minirlhf.losses.tiles import LOG2_E

QUERIES = 32  # of a block, in each head: half of the scores on the diagonal are computed for nothing
NUMBERS = 2**19  # scores at a time
LEAST = 2**20  # B H T^2 from which the many small operations pay


def suits(q: Tensor, k: Tensor, visible: Tensor | None) -> bool:
    """True if this attention is sooner than torch's."""
    B, H, T, _ = q.shape
    plain = q.device.type == "cpu" and q.dtype == torch.float32 and visible is None and k.shape[2] == T > 2 * QUERIES
    if not plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return B * H * T * T >= LEAST and wins()


class BlockAttention(torch.autograd.Function):
    """q [B, H, T, E], k and v [B, K, T, E] -> [B, H, T, E]. The backward pass computes the scores again."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        (B, H, T, E), K = q.shape, k.shape[1]
        ctx.factor = LOG2_E * (E**-0.5 if scale is None else scale)  # exp(x) is 2^(x log2 e), and exp2 is sooner
        q = torch.mul(q, ctx.factor, out=q.new_empty(q.shape)).view(B * K, H // K, T, E)
        k, v = (x.reshape(B * K, T, E) for x in (k, v))
        out = q.new_empty(B, T, H, E).transpose(1, 2)
        total = q.new_empty(B * K, H // K, T, 1)  # log2 of the sum of the powers
        room = q.new_empty(_most(B, H, T))
        for rows, heads, block, keys in _blocks(B, K, H, T):
            power = _powers(room, q[heads, :, block], k[heads, keys], block)
            top = power.amax(-1, keepdim=True)
            total_t = power.sub_(top).exp2_().sum(-1, keepdim=True)
            part = torch.bmm(power, v[heads, keys]).div_(total_t)
            out[rows, :, block] = part.view(-1, H, part.shape[1] * K // H, E)
            total[heads, :, block] = top.add_(total_t.log2_()).unflatten(1, (H // K, -1))
        ctx.save_for_backward(q, k, v, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        with torch.autocast("cpu", enabled=False):  # in fp32, as the forward pass
            return *_gradients(*ctx.saved_tensors, grad, ctx.factor), None


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, grad: Tensor, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from what the forward pass kept: q is multiplied by `factor`."""
    (B, H, T, E), K = out.shape, len(k) // len(out)
    inner = (grad * out).sum(-1).view(B * K, H // K, T, 1)
    grad = grad.contiguous().view(B * K, H // K, T, E)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    room, other = q.new_empty(2, _most(B, H, T))
    for _, heads, block, keys in _blocks(B, K, H, T):
        q_t, grad_t, total_t, inner_t = (x[heads, :, block].flatten(1, 2) for x in (q, grad, total, inner))
        p = _powers(room, q[heads, :, block], k[heads, keys], block).sub_(total_t).exp2_()
        grad_v[heads, keys].baddbmm_(p.transpose(1, 2), grad_t)
        slope = torch.bmm(grad_t, v[heads, keys].transpose(1, 2), out=other[: p.numel()].view(p.shape))
        slope.sub_(inner_t).mul_(p)
        grad_q[heads, :, block] = torch.bmm(slope, k[heads, keys]).unflatten(1, (H // K, -1))
        grad_k[heads, keys].baddbmm_(slope.transpose(1, 2), q_t)
    grad_q, grad_k = grad_q.mul_(factor / LOG2_E), grad_k.mul_(1 / LOG2_E)
    return grad_q.view(B, H, T, E), grad_k.view(B, K, T, E), grad_v.view(B, K, T, E)


def _blocks(B: int, K: int, H: int, T: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """(rows, their key-value heads among all B K, the block's queries, the keys that these see)."""
    for start in range(0, T, QUERIES):
        stop = min(start + QUERIES, T)
        count = max(1, NUMBERS // (H * (stop - start) * stop))
        for row in range(0, B, count):
            rows = slice(row, min(row + count, B))
            yield rows, slice(rows.start * K, rows.stop * K), slice(start, stop), slice(0, stop)


def _most(B: int, H: int, T: int) -> int:
    """The numbers of the largest block's scores."""
    return max((rows.stop - rows.start) * H * (at.stop - at.start) * at.stop for rows, _, at, _ in _blocks(B, 1, H, T))


def _powers(room: Tensor, q: Tensor, k: Tensor, block: slice) -> Tensor:
    """q k^T in `room` -> [b K, G t, S], -inf where a query would look ahead."""
    q = q.flatten(1, 2)
    power = torch.bmm(q, k.transpose(1, 2), out=room[: len(q) * q.shape[1] * k.shape[1]].view(*q.shape[:2], -1))
    queries = block.stop - block.start
    ahead = torch.full((queries, queries), -torch.inf, dtype=q.dtype).triu_(1)
    power.unflatten(1, (-1, queries))[..., block].add_(ahead)
    return power
