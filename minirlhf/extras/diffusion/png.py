"""Grey pictures as PNG files: grids of samples, and a reader for the same kind of file.

PNG: a signature, then chunks of (length, type, data, checksum): IHDR, IDAT (rows compressed by zlib), IEND. See
https://www.w3.org/TR/png.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from minirlhf.errors import InputError, writes

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: Path, pixels: Tensor) -> None:
    """Write a picture [H, W] of values from -1 (white) to 1 (black), in 8 bits."""
    if pixels.dim() != 2 or not pixels.numel() or not pixels.isfinite().all():
        raise InputError(f"{path}: needed a picture [H, W] of finite numbers, got {list(pixels.shape)}")
    grey = ((1 - pixels.detach().float().cpu().clamp(-1, 1)) * 127.5).round().to(torch.uint8)
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in grey)  # filter 0: the bytes as they are
    height, width = grey.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey, no interlacing
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    with writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grid(pictures: Tensor, columns: int, scale: int = 3) -> Tensor:
    """Pictures [B, 1, H, W] side by side, `columns` in a row, each pixel `scale` wide -> [rows * .., columns * ..]."""
    missing = -len(pictures) % columns
    padded = torch.nn.functional.pad(pictures.detach()[:, 0], (1, 1, 1, 1), value=0.0)
    padded = torch.cat([padded, -torch.ones_like(padded[:1]).expand(missing, -1, -1)])
    rows = padded.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    return rows.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
