"""Head, log-probs, loss and gradient, one chunk of tokens at a time. B sequences, T tokens, V vocabulary, D width.

`linear_token_logps` does not know the loss, so its backward pass computes each chunk's logits a second time. If
the loss of a token depends on that token alone, the forward pass can take its gradient while the chunk's logits exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from minirlhf.losses.logprobs import _check_temperature, autocast_dtype
from minirlhf.losses.masking import _wide, check_mask, predicted_tokens
from minirlhf.losses.products import product, takes
from minirlhf.losses.tiles import LOG2_E, add_product, chunks_of

MOST_COLUMNS = 2**14  # a chunk keeps 256 rows: smaller chunks would spend their time on reading the head's weight
CACHED_NUMBERS = 2**19  # logits that stay in the cache from one step of the softmax to the next: 2 MiB in fp32
HALVES = 4  # times as many tokens in a chunk of half precision take the same memory: no fp32 copy of it exists
MANY, LARGE = 128, 2**17  # tokens of a chunk and weights of a head from which oneDNN multiplies sooner, although it
#                          starts anew for each number of tokens
TokenLoss = Callable[..., Tensor]  # (logps [n], **inputs [n]) -> losses [n]


def fused_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    input_ids: Tensor,
    token_loss: TokenLoss,
    *,
    mask: Tensor,
    count: float | Tensor,
    inputs: dict[str, Tensor] | None = None,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over the mask of token_loss / count -> (loss, logps [B, T] nats, entropy [B, T] nats), the last two detached.

    Equals `masked_mean(token_loss(linear_token_logps(...), **inputs), mask, count)` in value and gradient, with three
    matrix products instead of four and nothing of size [B, T, V]. Memory is O(chunk * V) plus the gradients, held from
    the forward to the backward pass. Tokens outside the mask are not computed; their log-prob and entropy are 0.

    token_loss must look at each token by itself, because it sees one chunk of tokens at a time. A loss that mixes
    tokens, for example a ratio of whole sequences, would depend on the size of the chunks. Use
    `linear_token_logps` for such a loss: this function notices a wrong shape only.

    Args:
        hidden:     [B, T, D] in model order.   weight: [V, D] of the head.   input_ids: [B, T].
        token_loss: (logps [n], **inputs [n]) -> [n]: `cross_entropy`, `dft_loss`, `ppo_policy_loss`, ...
        mask:       [B, T] bool, index rule.   count: the global number to divide by.
        inputs:     further arguments of token_loss by name, [B, T] each, without gradient.
        weights:    [B, T], factor of each token's loss (1 / length gives `sequence_mean`); None is 1.
        temperature: > 0.   softcap: c of logits c tanh(z / c), as in Gemma 2, or None.
    Under torch.no_grad() no gradient is computed.
    Raises: ValueError if the shapes do not fit, temperature <= 0, token_loss does not return one number per token, or
        a tensor other than `hidden` and `weight` asks for a gradient.
    """
    _check_temperature("fused_linear_loss", temperature)
    inputs = {**(inputs or {})}
    extras = inputs if weights is None else {**inputs, "weights": weights}
    check_mask("fused_linear_loss", mask, input_ids=input_ids, hidden=hidden[..., 0], **extras)
    if hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"fused_linear_loss: needed hidden [B, T, D] and weight [V, D], got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    for name, value in {**extras, "count": torch.as_tensor(count)}.items():
        if value.requires_grad:
            raise ValueError(
                f"fused_linear_loss: {name} asks for a gradient, but only hidden and weight get one; detach it, or "
                "compute the loss outside, with linear_token_logps"
            )
    dtype = autocast_dtype(hidden)
    tokens, positions = predicted_tokens(mask)
    scale = (torch.ones_like(mask, dtype=_wide(dtype)) if weights is None else weights)[tokens] / count
    inputs = {name: value[tokens] for name, value in inputs.items()}
    with_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, logps, entropy = _FusedLoss.apply(
        hidden[positions].to(dtype),
        weight,
        input_ids[tokens],
        scale,
        temperature,
        softcap,
        token_loss,
        inputs,
        with_grad,
    )
    empty = torch.zeros(mask.shape, dtype=logps.dtype, device=logps.device)
    return loss, empty.masked_scatter(tokens, logps), empty.masked_scatter(tokens, entropy)


class _FusedLoss(torch.autograd.Function):
    """(hidden [N, D], weight [V, D], ids [N], scale [N], ...) -> (loss, logps [N], entropy [N])."""

    @staticmethod
    def forward(ctx, hidden, weight, ids, scale, temperature, softcap, token_loss, inputs, with_grad):
        ctx.save_for_backward(hidden, weight, ids, scale)
        ctx.needs = [with_grad and needed for needed in ctx.needs_input_grad[:2]]
        ctx.options = temperature, softcap, token_loss, inputs
        *results, ctx.grads = _over_chunks(hidden, weight, ids, scale, *ctx.options, *ctx.needs)
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        # The gradients are scaled in place: a scaled copy would double the memory. A second backward
        # pass through a retained graph computes them again.
        grads = ctx.grads or _over_chunks(*ctx.saved_tensors, *ctx.options, *ctx.needs)[-1]
        ctx.grads = None
        scaled = (grad if grad is None else grad.mul_(grad_loss.to(grad.dtype)) for grad in grads)
        return *scaled, None, None, None, None, None, None, None


def _over_chunks(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    scale: Tensor,
    temperature: float,
    softcap: float | None,
    token_loss: TokenLoss,
    inputs: dict[str, Tensor],
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """(loss, logps [N], entropy [N], gradients of hidden and weight)."""
    with_grad, kept = needs_hidden or needs_weight, weight.dtype
    weight = weight.to(hidden.dtype)
    logps = torch.empty(ids.shape, dtype=_wide(hidden.dtype), device=hidden.device)
    entropy = torch.empty_like(logps)
    loss = logps.new_zeros(())
    grad_hidden = torch.empty_like(hidden) if needs_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
    columns = min(len(weight), MOST_COLUMNS)
    if hidden.dtype != logps.dtype and hidden.device.type == "cpu" and softcap is None:
        columns = max(1, columns // HALVES)
    chunks, buffer = chunks_of(len(ids), columns), None
    for rows in chunks:
        if weight.numel() >= LARGE and takes(hidden[rows], weight, rows=MANY):
            logits_NV = product(hidden[rows], weight)
        else:
            # one buffer for all chunks: the system would clear the pages of a new one each time
            buffer = hidden.new_empty(chunks[0].stop, len(weight)) if buffer is None else buffer
            logits_NV = torch.mm(hidden[rows], weight.T, out=buffer[: rows.stop - rows.start])
        cap_slope_NV = None
        if softcap is not None:  # c tanh(z / c)
            logits_NV = logits_NV.to(logps.dtype).div_(softcap).tanh_()
            cap_slope_NV = 1 - logits_NV.square()
            logits_NV.mul_(softcap)
        logps[rows], entropy[rows], top_N, total_N = _read(logits_NV, ids[rows], LOG2_E / temperature)
        inputs_N = {name: value[rows] for name, value in inputs.items()}
        loss_N, slope_N = _loss_and_slope(token_loss, logps[rows], inputs_N, scale[rows], with_grad)
        loss += loss_N
        if with_grad:
            slope_N = slope_N / temperature
            grad_NV = _slope_(logits_NV, ids[rows], LOG2_E / temperature, top_N, total_N, slope_N)
            if cap_slope_NV is not None:
                grad_NV = grad_NV.mul_(cap_slope_NV).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_NV, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                add_product(grad_weight, grad_NV.T, hidden[rows])
        logits_NV = grad_NV = None  # before the next chunk exists
    return loss, logps, entropy, (grad_hidden, grad_weight if grad_weight is None else grad_weight.to(kept))


def _read(logits: Tensor, ids: Tensor, factor: float) -> Tensor:
    """[4, N]: log-prob of each id, entropy, top and total of the softmax 2^(logits factor - top) / total."""
    found = torch.empty(4, len(ids), dtype=_wide(logits.dtype), device=logits.device)
    for rows, z_NV, power_NV in _blocks(logits):
        top_N = z_NV.amax(-1, keepdim=True).mul_(factor)
        torch.add(-top_N, z_NV, alpha=factor, out=power_NV)
        p_NV = power_NV.exp2()
        total_N = p_NV.sum(-1)
        own_N = power_NV.gather(-1, ids[rows, None]).squeeze(-1)
        mean_N = p_NV.mul_(power_NV).sum(-1) / total_N
        log_N = total_N.log()
        found[:, rows] = torch.stack((own_N / LOG2_E - log_N, log_N - mean_N / LOG2_E, top_N.squeeze(-1), total_N))
    return found


def _slope_(logits: Tensor, ids: Tensor, factor: float, top: Tensor, total: Tensor, slope: Tensor) -> Tensor:
    """Turn logits [N, V] into slope (onehot - p), in place; in half precision they are rounded once.   slope: [N]."""
    for rows, z_NV, power_NV in _blocks(logits, logits):
        torch.add(-top[rows, None], z_NV, alpha=factor, out=power_NV)
        power_NV.exp2_().mul_(-(slope[rows] / total[rows])[:, None])
        power_NV.scatter_add_(-1, ids[rows, None], slope[rows, None])
        if power_NV.dtype != logits.dtype:
            logits[rows] = power_NV
    return logits


def _blocks(logits: Tensor, out: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of [N, V] that stay in the processor's cache, at least in fp32, and a place for as many numbers.

    The place is `out` where that has the dtype.
    """
    size = CACHED_NUMBERS // logits.shape[-1] if logits.device.type == "cpu" else len(logits)
    size = max(1, min(size, len(logits)))
    wide = _wide(logits.dtype)
    room = None if out is not None and out.dtype == wide else logits.new_empty(size, logits.shape[-1], dtype=wide)
    for start in range(0, len(logits), size):
        rows = slice(start, min(start + size, len(logits)))
        place = out[rows] if room is None else room[: rows.stop - start]
        yield rows, logits[rows] if logits.dtype == wide else place.copy_(logits[rows]), place


def _loss_and_slope(
    token_loss: TokenLoss, logps: Tensor, inputs: dict[str, Tensor], scale: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """(scaled sum of a chunk's losses, its derivative by each log-prob [n])."""
    with torch.set_grad_enabled(with_grad):
        logps = logps.clone().requires_grad_(with_grad)
        losses = token_loss(logps, **inputs)
        if losses.shape != logps.shape:
            raise ValueError(
                f"fused_linear_loss: token_loss must return one number per token, {tuple(logps.shape)}, got "
                f"{tuple(losses.shape)}; for losses of whole sequences use linear_token_logps"
            )
        total = (losses * scale).sum()
    if not with_grad:
        return total, None
    _refuse_other_leaves(total, logps)
    return total.detach(), torch.autograd.grad(total, logps)[0]


def _refuse_other_leaves(total: Tensor, logps: Tensor) -> None:
    """Raise ValueError if token_loss uses another tensor that asks for a gradient, for example from its closure."""
    visited, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if getattr(node, "variable", logps) is not logps:
            raise ValueError(
                "fused_linear_loss: token_loss uses a tensor that asks for a gradient, but only hidden and weight "
                "get one; detach it, or compute the loss outside, with linear_token_logps"
            )
        waiting += [parent for parent, _ in node.next_functions]
