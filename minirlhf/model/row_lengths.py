"""The number of real tokens in each row, known on the host although the mask lies on a GPU.

Reading the mask would make the host wait for all that the GPU still has to do.

B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(sequences: Any, device: torch.device | str) -> Any:
    """Copy a named tuple of CPU tensors to the device. The copied `attention_mask` notes the lengths of its rows."""
    device = torch.device(device)
    if device.type == "cpu":
        return sequences
    moved = sequences._make(carried(x, device) for x in sequences)
    mask = moved.attention_mask
    if not mask.is_inference():  # torch counts no version of it, so later writes would not show
        mask.noted_lengths = mask._version, tuple(sequences.attention_mask.sum(-1).tolist())
    return moved


def carried(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. The host goes on at once; from memory that is not pinned, it would wait for the GPU."""
    if device.type == "cuda" and x.numel():
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def lengths_of(attention_mask: Tensor) -> tuple[int, ...]:
    """As noted, or read from a mask [B, T] that somebody made, cut or wrote to: then the host waits once.

    torch does not count writes through `mask.data`, so nobody may write there.
    """
    noted = getattr(attention_mask, "noted_lengths", None)
    if noted and noted[0] == attention_mask._version:
        return noted[1]
    return tuple(attention_mask.sum(-1).tolist())
