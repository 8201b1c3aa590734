"""Token log-probs and entropy, from logits or from hidden states and the head's weight.

B sequences, T tokens, V vocabulary, D width, N = B * T tokens in a row. Inputs are in model order (the output at
position t is about token t + 1); results obey the index rule, so column 0 is 0.

Every function raises ValueError if the shapes do not fit or temperature <= 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import check_mask, predicted_tokens, shift_right

CHUNK_NUMBERS = 2**22  # logits alive at a time: 16 MiB in fp32; four times as many were no faster


def token_logps(logits: Tensor, input_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token given the tokens before it -> [B, T] nats, column 0 is 0.

    log softmax(logits / temperature)[token].  Builds [B, T, V]; `linear_token_logps` does not.

    Args:
        logits:      [B, T, V] in model order.   input_ids: [B, T].   temperature: > 0, as in sampling.
    """
    _check_temperature("token_logps", temperature)
    if logits.dim() != 3 or logits.shape[:-1] != input_ids.shape:
        raise ValueError(
            f"token_logps: needed logits [B, T, V] for input_ids [B, T], got {tuple(logits.shape)} and "
            f"{tuple(input_ids.shape)}; pass the logits of all T positions"
        )
    # log_softmax, not logit - logsumexp: the difference loses 5e-4 nats in fp32 if logits share an offset of 1e4
    logps = (_widen(logits) / temperature).log_softmax(-1)
    next_ids = input_ids.roll(-1, dims=1)  # model order; shift_right drops the last column
    return shift_right(logps.gather(-1, next_ids[..., None]).squeeze(-1))


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Shannon entropy of the distribution each token was drawn from -> [B, T] nats, column 0 is 0.

    Args:
        logits: [B, T, V] in model order.   temperature: > 0, as in sampling.
    """
    _check_temperature("token_entropy", temperature)
    logps = (_widen(logits) / temperature).log_softmax(-1)
    # a banned token has log-prob -inf, and 0 * -inf would be nan
    return shift_right(-(logps.exp() * logps.clamp(min=torch.finfo(logps.dtype).min)).sum(-1))


def linear_token_logps(
    hidden: Tensor,
    weight: Tensor,
    input_ids: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`token_logps(hidden @ weight.T + bias, ...)` without ever holding [B, T, V] -> [B, T] nats, column 0 is 0.

    This is the first result of `linear_logps_and_entropy`. The entropy is not computed.
    """
    return linear_logps_and_entropy(hidden, weight, input_ids, temperature, bias, softcap, mask, entropy=False)[0]


def linear_logps_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    input_ids: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    mask: Tensor | None = None,
    entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Token log-probs and entropy, both [B, T] nats with column 0 = 0, in chunks of tokens, with exact gradients.

    The backward pass computes each chunk's logits again instead of keeping them. So memory is O(chunk * V) beside the
    gradients, at the cost of one more matrix product (4 instead of 3).

    Args:
        hidden:      [B, T, D] in model order.   weight: [V, D] of the head.   input_ids: [B, T].
        temperature: > 0.   bias: [V] or None.   softcap: c of logits c tanh(z / c), as in Gemma 2, or None.
        mask:        [B, T] bool. Other tokens are not computed; their numbers are 0. None: all tokens.
        entropy:     False: the second result is None, and its time is saved.
    """
    _check_temperature("linear_token_logps", temperature)
    if hidden.shape[:-1] != input_ids.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear_token_logps: needed hidden [B, T, D], weight [V, D], input_ids [B, T], got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)}, {tuple(input_ids.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_token_logps: needed bias [{weight.shape[0]}], got {tuple(bias.shape)}")
    dtype, options = autocast_dtype(hidden), (temperature, softcap, entropy)
    head = weight.to(dtype), None if bias is None else bias.to(dtype)
    if mask is None:
        next_ids = input_ids.roll(-1, dims=1)  # model order; shift_right drops the last column
        results = _LinearLogps.apply(hidden.flatten(0, 1).to(dtype), *head, next_ids.flatten(), *options)
        return tuple(x if x is None else shift_right(x.view_as(input_ids)) for x in results)
    check_mask("linear_token_logps", mask, input_ids=input_ids)
    tokens, positions = predicted_tokens(mask)
    results = _LinearLogps.apply(hidden[positions].to(dtype), *head, input_ids[tokens], *options)
    return tuple(x if x is None else x.new_zeros(mask.shape).masked_scatter(tokens, x) for x in results)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product of x: autocast's dtype if autocast is on, else the dtype of x."""
    device = x.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else x.dtype
    )


class _LinearLogps(torch.autograd.Function):
    """(hidden [N, D], weight [V, D], bias [V] | None, ids [N], temperature, softcap, with_entropy) -> both [N]."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, temperature, softcap, with_entropy):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.temperature, ctx.softcap = temperature, softcap
        logps = torch.empty(ids.shape, dtype=_wide(hidden.dtype), device=hidden.device)
        entropy = torch.empty_like(logps) if with_entropy else None
        for rows in _chunks(ids.numel(), weight.shape[0]):
            logps_NV = _log_softmax(_logits(hidden[rows], weight, bias, softcap), temperature)
            logps[rows] = logps_NV.gather(-1, ids[rows, None]).squeeze(-1)
            if with_entropy:
                entropy[rows] = -logps_NV.exp().mul_(logps_NV).sum(-1)
            del logps_NV  # free the memory before the next chunk allocates
        return logps, entropy

    @staticmethod
    def backward(ctx, grad_logps, grad_entropy):
        if grad_logps is None and grad_entropy is None:
            return (None,) * 7
        hidden, weight, bias, ids = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # at least fp32, also for bf16 weights: a bf16 sum over chunks would lose the small terms
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if needs_bias else None
        for rows in _chunks(ids.numel(), weight.shape[0]):
            logits_NV = _logits(hidden[rows], weight, bias, ctx.softcap)
            cap_slope_NV = None if ctx.softcap is None else 1 - (logits_NV / ctx.softcap).square()  # c tanh(z / c)
            logps_NV = _log_softmax(logits_NV, ctx.temperature)
            del logits_NV
            grad_NV = logps_NV.exp()  # p; turned in place into the gradient of the logits
            if grad_entropy is not None:  # dH/dz = -p (log p + H)
                entropy_N1 = -(grad_NV * logps_NV).sum(-1, keepdim=True)
                slope_NV = logps_NV.add_(entropy_N1).mul_(grad_entropy[rows, None])
                if grad_logps is not None:
                    slope_NV += grad_logps[rows, None]
                grad_NV.mul_(slope_NV).neg_()
            else:
                grad_NV.mul_(-grad_logps[rows, None])
            if grad_logps is not None:  # d log p[id]/dz = onehot - p
                grad_NV.scatter_add_(-1, ids[rows, None], grad_logps[rows, None])
            if cap_slope_NV is not None:
                grad_NV.mul_(cap_slope_NV)
            grad_NV = grad_NV.div_(ctx.temperature).to(hidden.dtype)
            _add_head_gradients(grad_NV, rows, hidden, weight, grad_hidden, grad_weight)
            if needs_bias:
                grad_bias += grad_NV.sum(0)
            del cap_slope_NV, logps_NV, grad_NV
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(bias.dtype) if needs_bias else None,
            *(None,) * 4,
        )


def _add_head_gradients(
    grad_NV: Tensor,
    rows: slice,
    hidden: Tensor,
    weight: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """From the gradient of a chunk's logits: write `grad_hidden[rows]`, add to `grad_weight`; None is skipped."""
    if grad_hidden is not None:
        torch.mm(grad_NV, weight, out=grad_hidden[rows])
    if grad_weight is None:
        return
    if grad_weight.dtype == grad_NV.dtype:
        grad_weight.addmm_(grad_NV.T, hidden[rows])  # in place: no second [V, D]
    else:
        grad_weight += grad_NV.T @ hidden[rows]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    # The product has the dtype of its inputs; all later steps are at least fp32: a bf16 log_softmax is off by up to
    # 0.035 nats at V = 32k, a sixth of PPO's usual clip range
    logits = _widen(torch.nn.functional.linear(hidden, weight, bias))
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits.div_(temperature)).log_softmax(-1)


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    # beyond V = 32k a chunk keeps 128 rows: smaller chunks would spend their time on reading the head's weight
    size = max(1, CHUNK_NUMBERS // min(vocabulary, 2**15))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide(x.dtype))


def _check_temperature(name: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"{name}: temperature must be > 0, got {temperature}; greedy decoding has no log-prob to train on"
        )
