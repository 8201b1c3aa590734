"""Head, log-probs, loss and gradient of a chunk of tokens at a time. B sequences, T tokens, V vocabulary, D width.

`linear_token_logps` leaves the loss in the open and pays for it by computing each chunk's logits twice. Where the
loss is a function of one token, its gradient can be taken as soon as the chunk is there, in the forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minirlhf.losses.logprobs import _check_temperature, _chunks, _log_softmax, _logits, _wide, autocast_dtype
from minirlhf.losses.masking import check_mask

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
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over the mask of token_loss / count -> (loss, logps [B, T] nats, entropy [B, T] nats), the last two detached.

    The same as `masked_mean(token_loss(linear_token_logps(...), **inputs), mask, count)`, gradients too, with three
    matrix products instead of four and nothing of size [B, T, V]: memory is O(chunk * V) and the gradients, which are
    held from the forward to the backward. Tokens outside the mask are never computed; their log-prob and entropy are 0.

    Args:
        hidden:     [B, T, D] in model order.   weight: [V, D], the head's.   input_ids: [B, T].
        token_loss: (logps [n], **inputs [n]) -> [n], each from its own token alone: `cross_entropy`, `dft_loss`,
                    `ppo_policy_loss`, ... Losses of whole sequences cannot be taken: they see a chunk only.
        mask:       [B, T] bool, index rule.   count: the global number to divide by.
        inputs:     what token_loss takes by name beside the log-probs, [B, T] each, without gradient.
        weights:    [B, T], factor of each token's loss (1 / length makes `sequence_mean` of it); None is 1.
        temperature: > 0.
    Under torch.no_grad() no gradient is computed.   Raises: ValueError if the shapes do not fit, token_loss does not
        return one number per token, or something else than `hidden` and `weight` asks for a gradient.
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
                f"fused_linear_loss: {name} asks for a gradient, which only hidden and weight get; detach it, or "
                "leave the loss in the open with linear_token_logps"
            )
    dtype = autocast_dtype(hidden)
    places = mask.clone()
    places[:, 0] = False  # nothing stands before token 0
    speakers = places.roll(-1, dims=1)  # model order: position t - 1 speaks about token t
    scale = (torch.ones_like(mask, dtype=_wide(dtype)) if weights is None else weights)[places] / count
    inputs = {name: value[places] for name, value in inputs.items()}
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, logps, entropy = _FusedLoss.apply(
        hidden[speakers].to(dtype), weight.to(dtype), input_ids[places], scale, temperature, token_loss, inputs, wanted
    )
    empty = torch.zeros(mask.shape, dtype=logps.dtype, device=logps.device)
    return loss, empty.masked_scatter(places, logps), empty.masked_scatter(places, entropy)


class _FusedLoss(torch.autograd.Function):
    """(hidden [N, D], weight [V, D], ids [N], scale [N], ...) -> (loss, logps [N], entropy [N])."""

    @staticmethod
    def forward(ctx, hidden, weight, ids, scale, temperature, token_loss, inputs, wanted):
        ctx.save_for_backward(hidden, weight, ids, scale)
        ctx.needs = [wanted and needed for needed in ctx.needs_input_grad[:2]]
        ctx.rest = temperature, token_loss, inputs
        *results, ctx.grads = _over_chunks(hidden, weight, ids, scale, *ctx.rest, *ctx.needs)
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        # The gradients are handed out, not kept beside a scaled copy, which would double the memory. A second backward
        # through a retained graph computes them again.
        grads = ctx.grads or _over_chunks(*ctx.saved_tensors, *ctx.rest, *ctx.needs)[-1]
        ctx.grads = None
        scaled = (grad if grad is None else grad.mul_(grad_loss.to(grad.dtype)) for grad in grads)
        return *scaled, None, None, None, None, None, None


def _over_chunks(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    scale: Tensor,
    temperature: float,
    token_loss: TokenLoss,
    inputs: dict[str, Tensor],
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """(loss, logps [N], entropy [N], gradients of hidden and weight)."""
    wanted = needs_hidden or needs_weight
    logps = torch.empty(ids.shape, dtype=_wide(hidden.dtype), device=hidden.device)
    entropy = torch.empty_like(logps)
    loss = logps.new_zeros(())
    grad_hidden = torch.empty_like(hidden) if needs_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
    for rows in _chunks(ids.numel(), weight.shape[0]):
        logps_NV = _log_softmax(_logits(hidden[rows], weight, None, None), temperature)
        logps[rows] = logps_NV.gather(-1, ids[rows, None]).squeeze(-1)
        grad_NV = logps_NV.exp()  # p, which becomes the gradient of the logits in place
        entropy[rows] = -logps_NV.mul_(grad_NV).sum(-1)
        del logps_NV  # or it would still be there while the next chunk's is made
        inputs_N = {name: value[rows] for name, value in inputs.items()}
        loss_N, slope_N = _loss_and_slope(token_loss, logps[rows], inputs_N, scale[rows], wanted, rows.start == 0)
        loss += loss_N
        if wanted:
            slope_N = slope_N[:, None] / temperature
            grad_NV.mul_(-slope_N).scatter_add_(-1, ids[rows, None], slope_N)
            grad_NV = grad_NV.to(hidden.dtype)
        if needs_hidden:
            torch.mm(grad_NV, weight, out=grad_hidden[rows])
        if needs_weight and grad_weight.dtype == grad_NV.dtype:
            grad_weight.addmm_(grad_NV.T, hidden[rows])
        elif needs_weight:
            grad_weight += grad_NV.T @ hidden[rows]
        del grad_NV
    return loss, logps, entropy, (grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype))


def _loss_and_slope(
    token_loss: TokenLoss, logps: Tensor, inputs: dict[str, Tensor], scale: Tensor, wanted: bool, first: bool
) -> tuple[Tensor, Tensor | None]:
    """Of one chunk: the scaled sum of the losses, and its derivative by each log-prob [n].

    first: is it the first chunk, where one look at whether tokens depend on one another is enough?
    """
    with torch.set_grad_enabled(wanted):
        logps = logps.clone().requires_grad_(wanted)
        losses = token_loss(logps, **inputs)
        if losses.shape != logps.shape:
            raise ValueError(
                f"fused_linear_loss: token_loss must return one number per token, {tuple(logps.shape)}, got "
                f"{tuple(losses.shape)}; for losses of whole sequences use linear_token_logps"
            )
        total = (losses * scale).sum()
    if not wanted:
        return total, None
    _refuse_other_leaves(total, logps)
    if first:
        _refuse_other_tokens(losses, logps)
    return total.detach(), torch.autograd.grad(total, logps)[0]


def _refuse_other_tokens(losses: Tensor, logps: Tensor) -> None:
    """Raise ValueError if the first token's loss depends on others: chunk by chunk the result would be another."""
    if len(losses) < 2 or not losses.requires_grad:
        return
    first = torch.zeros_like(losses)
    first[0] = 1
    (slope,) = torch.autograd.grad(losses, logps, first, retain_graph=True)
    if bool(slope[1:].any()):
        raise ValueError(
            "fused_linear_loss: token_loss must look at each token by itself, got a loss that depends on other tokens; "
            "for losses of whole sequences use linear_token_logps"
        )


def _refuse_other_leaves(total: Tensor, logps: Tensor) -> None:
    """Raise ValueError if the loss depends on a tensor with gradient that it did not get from us (a closure's)."""
    seen, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", logps) is not logps:
            raise ValueError(
                "fused_linear_loss: token_loss uses a tensor that asks for a gradient, which only hidden and weight "
                "get; detach it, or leave the loss in the open with linear_token_logps"
            )
        waiting += [parent for parent, _ in node.next_functions]
