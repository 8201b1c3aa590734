"""ZeRO-1: each process keeps AdamW's moments of some parameters (Rajbhandari et al. 2019, arXiv:1910.02054).

A parameter belongs to one process. That process updates it and sends it to the others: the same bytes as one
all-gather. Memory of moments: 8 bytes for each of P / N parameters instead of P.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def owners(parameters: Sequence[nn.Parameter], processes: int) -> list[int]:
    """The process of each parameter: the largest first, each to the process with the fewest numbers so far."""
    held, chosen = [0] * processes, [0] * len(parameters)
    for i in sorted(range(len(parameters)), key=lambda i: -parameters[i].numel()):
        chosen[i] = held.index(min(held))
        held[chosen[i]] += parameters[i].numel()
    return chosen


@torch.no_grad()
def send_updated(parameters: Sequence[nn.Parameter], owner: Sequence[int]) -> None:
    """Give each process the parameters that the others have updated: one broadcast for each process and dtype."""
    for process in range(dist.get_world_size()):
        mine = [p for p, its in zip(parameters, owner, strict=True) if its == process]
        for dtype in sorted({p.dtype for p in mine}, key=str):
            same = [p for p in mine if p.dtype == dtype]
            flat = torch.cat([p.detach().flatten() for p in same])
            dist.broadcast(flat, process)
            for p, part in zip(same, flat.split([p.numel() for p in same]), strict=True):
                p.copy_(part.view_as(p))
