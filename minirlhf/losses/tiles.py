"""The head's logits tile by tile: log-probs and entropy with exact gradients, and no tensor [B, T, V].

N tokens in a row, V vocabulary, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minirlhf.losses.masking import _wide, _widen
from minirlhf.losses.products import product, takes

CHUNK_NUMBERS = 2**22  # logits alive at a time: 16 MiB in fp32; four times as many were no faster
COLUMNS = 2**10  # of the vocabulary in a tile
LOG2_E = math.log2(math.e)  # exp(x) is 2^(x log2 e); on a CPU torch.exp2 takes a third of the time of torch.exp


class LinearLogps(torch.autograd.Function):
    """(hidden [N, D], weight [V, D], bias [V] | None, ids [N], softcap, temperature, with_entropy) -> two [N].

    A tile holds the logits of some tokens over some columns of the vocabulary. It stays in the processor's cache from
    its product to its use, and the head's weight is read once for many tokens.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, softcap, temperature, with_entropy):
        ctx.set_materialize_grads(False)
        ctx.options = options = softcap, temperature
        found = torch.empty(4, len(ids), dtype=_wide(hidden.dtype), device=hidden.device)
        for rows in chunks_of(len(ids), min(len(weight), COLUMNS)):
            found[:, rows] = read(hidden[rows], weight, bias, ids[rows], options, with_entropy)
        own, top, log_total, entropy = found
        ctx.save_for_backward(hidden, weight, bias, ids, top, log_total, entropy)
        return own - top - log_total, entropy if with_entropy else None

    @staticmethod
    def backward(ctx, grad_logps, grad_entropy):
        if grad_logps is None and grad_entropy is None:
            return (None,) * 7
        hidden, weight, bias, ids, top, log_total, entropy = ctx.saved_tensors
        softcap, temperature = ctx.options
        # at least fp32, also for bf16 weights: a bf16 sum over tiles would lose the small terms
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros_like(x, dtype=_wide(x.dtype)) if needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows in chunks_of(len(ids), min(len(weight), COLUMNS)):
            for columns in tiles_of(len(weight)):
                logits_NV = logits(hidden[rows], weight, bias, columns, *ctx.options)
                # c tanh(z / c)
                cap_slope_NV = None if softcap is None else 1 - (logits_NV * (temperature / softcap)).square()
                logps_NV = logits_NV.sub_(top[rows, None]).sub_(log_total[rows, None])
                if grad_entropy is None:
                    grad_NV = exp_(logps_NV).mul_(-grad_logps[rows, None])
                else:  # dH/dz = -p (log p + H)
                    slope_NV = (logps_NV + entropy[rows, None]).mul_(grad_entropy[rows, None])
                    if grad_logps is not None:
                        slope_NV += grad_logps[rows, None]
                    grad_NV = exp_(logps_NV).mul_(slope_NV).neg_()
                if grad_logps is not None:  # d log p[id]/dz = onehot - p
                    at, inside = within(ids[rows], columns)
                    grad_NV.scatter_add_(-1, at[:, None], torch.where(inside, grad_logps[rows], 0)[:, None])
                if cap_slope_NV is not None:
                    grad_NV.mul_(cap_slope_NV)
                grad_NV = grad_NV.div_(temperature).to(hidden.dtype)
                if grad_hidden is not None:
                    add_product(grad_hidden[rows], grad_NV, weight[columns])
                if grad_weight is not None:
                    add_product(grad_weight[columns], grad_NV.T, hidden[rows])
                if grad_bias is not None:
                    grad_bias[columns] += grad_NV.sum(0)
        sums = zip((grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True)
        return *(grad if grad is None else grad.to(x.dtype) for grad, x in sums), *(None,) * 4


def read(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    options: tuple[float | None, float],
    with_entropy: bool,
) -> Tensor:
    """[4, N]: the id's logit, the largest logit, log of the sum of exp(logit - largest), the entropy (or zeros)."""
    own = torch.zeros(ids.shape, dtype=_wide(hidden.dtype), device=hidden.device)
    tops, totals, means = [], [], []  # of each tile; means: the sum of exp(z) z, with z relative to the tile's top
    for columns in tiles_of(len(weight)):
        z_NV = logits(hidden, weight, bias, columns, *options)
        at, inside = within(ids, columns)
        own = torch.where(inside, z_NV.gather(-1, at[:, None]).squeeze(-1), own)
        tops.append(z_NV.amax(-1).clamp(min=torch.finfo(z_NV.dtype).min))  # -inf - -inf would be nan
        z_NV.sub_(tops[-1][:, None])
        p_NV = exp_(z_NV.clone() if with_entropy else z_NV)
        totals.append(p_NV.sum(-1))
        means.append(z_NV.mul_(p_NV).sum(-1) if with_entropy else own)
    tops, totals, means = (torch.stack(x) for x in (tops, totals, means))
    top = tops.amax(0)
    scales = (tops - top).exp()
    total = (scales * totals).sum(0)
    entropy = total.log() - (scales * (means + totals * (tops - top))).sum(0) / total if with_entropy else 0 * own
    return torch.stack((own, top, total.log(), entropy))


def exp_(x: Tensor) -> Tensor:
    """e^x in place: as 2^x on a CPU, where torch computes it sooner."""
    return x.mul_(LOG2_E).exp2_() if x.device.type == "cpu" else x.exp_()


def within(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """(place of each id among the columns, True where the id is one of them), [N] each, without a host read."""
    at = ids - columns.start
    return at.clamp(0, columns.stop - columns.start - 1), (at >= 0) & (ids < columns.stop)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in place, so that no second tensor of its size exists."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice, softcap: float | None, temperature: float
) -> Tensor:
    # The product has the dtype of its inputs; all later steps are at least fp32: a bf16 log_softmax is off by up to
    # 0.035 nats at V = 32k, a sixth of PPO's usual clip range
    multiply = product if takes(hidden, weight[columns]) else torch.nn.functional.linear
    logits = _widen(multiply(hidden, weight[columns], None if bias is None else bias[columns]))
    logits = logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)
    return logits if temperature == 1 else logits.div_(temperature)


def chunks_of(rows: int, vocabulary: int) -> list[slice]:
    # beyond V = 32k a chunk keeps 128 rows: smaller chunks would spend their time on reading the head's weight
    size = max(1, CHUNK_NUMBERS // min(vocabulary, 2**15))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def tiles_of(vocabulary: int) -> list[slice]:
    return [slice(start, min(start + COLUMNS, vocabulary)) for start in range(0, vocabulary, COLUMNS)]
