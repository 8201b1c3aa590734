"""Tensors that travel between processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def gather_vectors(x: Tensor) -> list[Tensor]:
    """The vectors [N] of all ranks, on every rank. N may differ from rank to rank."""
    if not dist.is_initialized():
        return [x]
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    width = max(1, *(int(size) for size in sizes))  # no backend must send an empty tensor
    parts = [x.new_zeros(width) for _ in sizes]
    dist.all_gather(parts, F.pad(x, (0, width - len(x))))
    return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
