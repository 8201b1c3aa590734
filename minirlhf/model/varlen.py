"""Attention within the rows of a packed batch in one call: torch's varlen kernel, FlashAttention on a GPU.

B rows, N tokens of all rows, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# of the largest number, in the dtypes that the kernel takes
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
LENGTHS = (3, 1, 150, 64)  # of the probe's rows: one has a single token, one is longer than a tile of the kernel
WINDOW = 7  # of the probe


def attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, window: int | None, scale: float | None
) -> Tensor:
    """Causal attention within each row: [1, heads, N, E] each -> [1, H, N, E].

    bounds: [B + 1] int32, the token at which each row begins, and N.   window: [tokens] that a token sees; None: all.
    """
    from torch.nn.attention.varlen import varlen_attn  # here, so that a torch without it can still load this file

    dtype, grouped = kernel_dtype(q.device, q.dtype), q.shape[1] != k.shape[1]
    sides = (-1 if window is None or window >= longest else window - 1, 0)  # tokens to the left and to the right
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (q, k, v))
    options = {"scale": scale, "window_size": sides, "enable_gqa": grouped}
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, **options).transpose(0, 1)[None]


def kernel_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which attention computes numbers of this dtype: autocast's, if it is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


@cache
def supported(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int], window: int | None, scale: float | None
) -> bool:
    """Whether values and gradients are those of plain attention, tried once on a small batch. A warning says if not.

    heads: (H, K, E).
    """
    if dtype not in TOLERANCE:
        return False
    try:
        reason = "" if _agrees(device, dtype, heads, window, scale) else "its results differ from plain attention"
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel
    except Exception as error:  # an older torch, a GPU or a head width that the kernel does not take
        reason = (str(error) or type(error).__name__).splitlines()[0]
    if reason:
        warnings.warn(f"batches keep their padding, so training is slower: varlen attention: {reason}", stacklevel=2)
    return not reason


def _agrees(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int], window: int | None, scale: float | None
) -> bool:
    H, K, E = heads
    N, generator = sum(LENGTHS), torch.Generator().manual_seed(0)  # its own, so that no other random number changes
    rows, at = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)), torch.arange(N)
    distance = at[:, None] - at
    visible = (rows[:, None] == rows) & (distance >= 0) & (distance < (window or N))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(device, torch.int32)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        *inputs, grad = (torch.randn(1, h, N, E, generator=generator).to(device, dtype) for h in (H, K, K, H))
        inputs, wide = ([x.to(t).requires_grad_() for x in inputs] for t in (dtype, torch.float64))
        out = attend_varlen(*inputs, bounds, max(LENGTHS), window, scale)
        plain = F.scaled_dot_product_attention(*wide, visible.to(device), scale=scale, enable_gqa=H != K)
        found = out, *torch.autograd.grad(out, inputs, grad)
        expected = plain, *torch.autograd.grad(plain, wide, grad.double())
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    return max(x.item() for x in errors) <= TOLERANCE[dtype]  # nan is no agreement
