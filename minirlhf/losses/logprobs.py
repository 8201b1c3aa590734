"""Token log-probs and entropy, from logits or from hidden states and the head's weight.

B sequences, T tokens, V vocabulary, D width, N = B * T tokens in a row. Inputs are in model order (the output at
position t is about token t + 1); results obey the index rule, so column 0 is 0.

Every function raises ValueError if the shapes do not fit or temperature <= 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import _widen, check_mask, predicted_tokens, shift_right


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
    """Token log-probs and entropy, both [B, T] nats with column 0 = 0, in tiles, with exact gradients.

    The backward pass computes each tile's logits again instead of keeping them. So memory is a tile beside the
    gradients, at the cost of one more matrix product (4 instead of 3).

    Args:
        hidden:      [B, T, D] in model order.   weight: [V, D] of the head.   input_ids: [B, T].
        temperature: > 0.   bias: [V] or None.   softcap: c of logits c tanh(z / c), as in Gemma 2, or None.
        mask:        [B, T] bool. Other tokens are not computed; their numbers are 0. None: all tokens.
        entropy:     False: the second result is None, and its time is saved.
    """
    from minirlhf.losses.tiles import LinearLogps  # here, so that the core loads no leaf

    _check_temperature("linear_token_logps", temperature)
    if hidden.shape[:-1] != input_ids.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear_token_logps: needed hidden [B, T, D], weight [V, D], input_ids [B, T], got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)}, {tuple(input_ids.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_token_logps: needed bias [{weight.shape[0]}], got {tuple(bias.shape)}")
    dtype, options = autocast_dtype(hidden), (softcap, temperature, entropy)
    head = weight.to(dtype), None if bias is None else bias.to(dtype)
    if mask is None:
        next_ids = input_ids.roll(-1, dims=1)  # model order; shift_right drops the last column
        results = LinearLogps.apply(hidden.flatten(0, 1).to(dtype), *head, next_ids.flatten(), *options)
        return tuple(x if x is None else shift_right(x.view_as(input_ids)) for x in results)
    check_mask("linear_token_logps", mask, input_ids=input_ids)
    tokens, positions = predicted_tokens(mask)
    results = LinearLogps.apply(hidden[positions].to(dtype), *head, input_ids[tokens], *options)
    return tuple(x if x is None else x.new_zeros(mask.shape).masked_scatter(tokens, x) for x in results)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product of x: autocast's dtype if autocast is on, else the dtype of x."""
    device = x.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else x.dtype
    )


def _check_temperature(name: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"{name}: temperature must be > 0, got {temperature}; greedy decoding has no log-prob to train on"
        )
