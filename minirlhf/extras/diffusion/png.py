"""Grey pictures as PNG files, and grids of pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minirlhf.errors import InputError, writes
from minirlhf.extras.png import png_bytes


def write_png(path: Path, pixels: Tensor) -> None:
    """Write a picture [H, W] of values from -1 (white) to 1 (black), in 8 bits."""
    if pixels.dim() != 2 or not pixels.numel() or not pixels.isfinite().all():
        raise InputError(f"{path}: needed a picture [H, W] of finite numbers, got {list(pixels.shape)}")
    grey = ((1 - pixels.detach().float().cpu().clamp(-1, 1)) * 127.5).round().to(torch.uint8)
    with writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(grey.numpy()))


def grid(pictures: Tensor, columns: int, scale: int = 3) -> Tensor:
    """Pictures [B, 1, H, W] side by side, `columns` in a row, each pixel `scale` wide -> [rows * .., columns * ..]."""
    missing = -len(pictures) % columns
    padded = torch.nn.functional.pad(pictures.detach()[:, 0], (1, 1, 1, 1), value=0.0)
    padded = torch.cat([padded, -torch.ones_like(padded[:1]).expand(missing, -1, -1)])
    rows = padded.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    return rows.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
