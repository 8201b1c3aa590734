"""Head, log-probs, loss and gradient, one chunk of tokens at a time. B sequences, T tokens, V vocabulary, D width.

`linear_token_logps` does not know the loss, so its backward pass computes each chunk's logits a second time. If
the loss of a token depends on that token alone, the forward pass can take its gradient while the chunk's logits exist.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minirlhf.losses.logprobs import _check_temperature, autocast_dtype
from minirlhf.losses.masking import _wide, check_mask, predicted_tokens
from minirlhf.losses.tiles import add_product, chunks_of

MOST_COLUMNS = 2**14  # a chunk keeps 256 rows: smaller chunks would spend their time on reading the head's weight
CACHED_NUMBERS = 2**20  # logits that stay in the cache from one step of the softmax to the next: 4 MiB in fp32
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
        weight.to(dtype),
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
    with_grad = needs_hidden or needs_weight
    logps = torch.empty(ids.shape, dtype=_wide(hidden.dtype), device=hidden.device)
    entropy = torch.empty_like(logps)
    loss = logps.new_zeros(())
    grad_hidden = torch.empty_like(hidden) if needs_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
    chunks = chunks_of(len(ids), min(len(weight), MOST_COLUMNS))
    # One buffer for all chunks: the system would clear the pages of a new one each time.
    buffer = logps.new_empty(chunks[0].stop if chunks else 0, len(weight))
    for rows in chunks:
        logits_NV = _product(hidden[rows], weight, buffer[: rows.stop - rows.start])
        cap_slope_NV = None
        if softcap is not None:  # c tanh(z / c)
            tanh_NV = logits_NV.div_(softcap).tanh_()
            cap_slope_NV = 1 - tanh_NV.square()
            logits_NV.mul_(softcap)
        if temperature != 1:
            logits_NV.div_(temperature)
        logps[rows], entropy[rows] = _softmax_(logits_NV, ids[rows])
        inputs_N = {name: value[rows] for name, value in inputs.items()}
        loss_N, slope_N = _loss_and_slope(token_loss, logps[rows], inputs_N, scale[rows], with_grad)
        loss += loss_N
        if with_grad:
            slope_N = slope_N[:, None] / temperature
            grad_NV = logits_NV.mul_(-slope_N).scatter_add_(-1, ids[rows, None], slope_N)
            if cap_slope_NV is not None:
                grad_NV.mul_(cap_slope_NV)
            grad_NV = grad_NV.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_NV, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                add_product(grad_weight, grad_NV.T, hidden[rows])
    return loss, logps, entropy, (grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype))


def _product(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """hidden @ weight.T, written to `out`."""
    if out.dtype == hidden.dtype:
        return torch.mm(hidden, weight.T, out=out)
    return out.copy_(torch.mm(hidden, weight.T))


def _softmax_(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits [N, V] into probabilities, in place -> (log-prob of each id [N], entropy [N]).

    A few rows at a time, so that they stay in the processor's cache.
    """
    size = max(1, CACHED_NUMBERS // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    logps, entropy = [], []
    for z_NV, ids_N in zip(logits.split(size), ids.split(size), strict=True):
        z_NV.sub_(z_NV.amax(-1, keepdim=True))
        p_NV = z_NV.exp()
        total_N = p_NV.sum(-1)
        logps.append(z_NV.gather(-1, ids_N[:, None]).squeeze(-1) - total_N.log())
        entropy.append(total_N.log() - z_NV.mul_(p_NV).sum(-1) / total_N)
        torch.div(p_NV, total_N[:, None], out=z_NV)
    return torch.cat(logps), torch.cat(entropy)


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
