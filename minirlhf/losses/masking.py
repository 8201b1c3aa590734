"""The index rule and every reduction over masked tensors.

B sequences, T tokens. Column t of a per-token tensor speaks about token t of `input_ids`. A mask is bool and True
counts. Numbers outside the mask may be anything, NaN included: they reach neither a value nor a gradient.

Every reduction raises ValueError if the shapes differ or the mask is not bool.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Count = int | float | Tensor | None


def shift_right(x: Tensor) -> Tensor:
    """Model order to index rule: column t := x[:, t - 1], column 0 := 0.

    The network's output at position t - 1 is about token t. Works on [B, T] and [B, T, ...].
    """
    return F.pad(x[:, :-1], (0, 0) * (x.dim() - 2) + (1, 0))


def predicted_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, positions), both [B, T] bool: the mask without column 0, and the positions that predict these tokens.

    Position t - 1 predicts token t; no position predicts token 0. hidden[positions] and input_ids[tokens] are in the
    same order.
    """
    tokens = mask.clone()
    tokens[:, 0] = False
    return tokens, tokens.roll(-1, dims=1)


def check_same_shape(name: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape, so that nothing broadcasts by accident."""
    shapes = {key: tuple(x.shape) for key, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"{name}: needed tensors of one shape, got {shapes}; check which tensor was transposed or shifted"
        )


def check_mask(name: str, mask: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless `mask` is bool and has the shape of every other tensor."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: mask must be bool with True = counts, got {mask.dtype}; use mask.bool()")
    check_same_shape(name, mask=mask, **tensors)


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on a device without float64 (Apple's mps)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x [B, T] where mask [B, T] is True -> scalar, in the units of x."""
    check_mask("masked_sum", mask, x=x)
    return torch.where(mask, x, 0).sum()


def masked_mean(x: Tensor, mask: Tensor, count: Count = None) -> Tensor:
    """Sum over the mask divided by `count` -> scalar, in the units of x.

    Args:
        x, mask: [B, T].
        count:   the number of True tokens over all micro-batches and ranks of the update, so that splitting a batch
                 cannot change the result; None counts this mask. An empty mask gives 0 with zero gradient.
    """
    check_mask("masked_mean", mask, x=x)
    return torch.where(mask, x, 0).sum() / _at_least_one(mask.sum() if count is None else count)


def sequence_mean(x: Tensor, mask: Tensor, count: Count = None) -> Tensor:
    """Mean over the tokens of each row, then over rows -> scalar: short and long sequences weigh the same.

    Args:
        x, mask: [B, T].
        count:   the number of rows with a True token in the whole update; None counts the rows of this mask.
    """
    check_mask("sequence_mean", mask, x=x)
    tokens = mask.sum(-1)
    row_means = torch.where(mask, x, 0).sum(-1) / tokens.clamp(min=1)
    return row_means.sum() / _at_least_one((tokens > 0).sum() if count is None else count)


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, sum, sum of squares) over the mask, three float64 scalars that add up over micro-batches and ranks."""
    check_mask("masked_moments", mask, x=x)
    # float64, because sum_sq - sum^2 / n cancels: in float32 a mean of 1e3 would leave no digit of a std of 1
    masked = torch.where(mask, x, 0).to(wide_dtype(x))
    return mask.sum().to(masked.dtype), masked.sum(), masked.square().sum()


def mean_and_var(moments: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (ddof 1) from `masked_moments`; fewer than two numbers have variance 0."""
    n, total, total_sq = moments
    mean = total / n.clamp(min=1)
    var = (total_sq - n * mean.square()) / (n - 1).clamp(min=1)
    return mean, var.clamp(min=0)  # rounding may leave -1e-17


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance (ddof 1) of x [B, T] over the mask -> scalar; 0 for fewer than two numbers."""
    return mean_and_var(masked_moments(x, mask))[1].to(x.dtype)


def masked_whiten(
    x: Tensor, mask: Tensor, moments: tuple[Tensor, Tensor, Tensor] | None = None, shift_mean: bool = True
) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the mask -> [B, T] without unit, 0 outside the mask.

    Args:
        x, mask:    [B, T].
        moments:    `masked_moments` summed over all ranks and micro-batches; None takes the moments of x.
        shift_mean: False adds the mean back, as is usual for rewards, because their sign means something (Ziegler et
                    al. 2019, arXiv:1909.08593).
    """
    check_mask("masked_whiten", mask, x=x)
    mean, var = mean_and_var(masked_moments(x, mask) if moments is None else moments)
    # masked before and after: in the product's backward pass 0 * nan would reach mean and variance
    whitened = (torch.where(mask, x, 0) - mean) * torch.rsqrt(var + 1e-8) + (0 if shift_mean else mean)
    return torch.where(mask, whitened.to(x.dtype), 0)


def _at_least_one(count: int | float | Tensor) -> int | float | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide(x.dtype))
