"""The groups of an optimizer whose parameters several processes share.

ZeRO-1: each process keeps the moments of a part of the weights, updates this part, and sends it to the others.
Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models", arXiv:1910.02054.
Weights and gradients stay whole on each process, so the update is that of one process, number for number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from minirlhf.runtime.distributed import rank, world_size
from minirlhf.runtime.parallel.strategy import current


def arrange(optimizer: torch.optim.Optimizer) -> None:
    """Change the groups of a new optimizer as the current strategy needs them."""
    part_slices_from_whole(optimizer)
    if current().shard_optimizer:
        keep_own_part(optimizer)


def part_slices_from_whole(optimizer: torch.optim.Optimizer) -> None:
    """Put slices and whole parameters, such as adapters, into different groups: a group is updated in one call."""
    for group in list(optimizer.param_groups):
        whole = [p for p in group["params"] if not isinstance(p, DTensor)]
        if 0 < len(whole) < len(group["params"]):
            group["params"] = [p for p in group["params"] if isinstance(p, DTensor)]
            optimizer.add_param_group({**group, "params": whole})


def keep_own_part(optimizer: torch.optim.Optimizer) -> None:
    """Keep this process's part of the parameters. After each step the processes send their parts to one another."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    owners = owners_of([p.numel() for p in parameters], world_size())
    own = {p for p, owner in zip(parameters, owners, strict=True) if owner == rank()}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p in own]

    @torch.no_grad()
    def send(*_: object) -> None:
        sent = [dist.broadcast(p.data, owner, async_op=True) for p, owner in zip(parameters, owners, strict=True)]
        for work in sent:
            work.wait()

    optimizer.register_step_post_hook(send)


def owners_of(sizes: Sequence[int], processes: int) -> list[int]:
    """The process that updates each parameter: the largest first, each to the process with the least so far."""
    loads, owners = [0] * processes, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[i] = min(range(processes), key=lambda process: (loads[process], process))
        loads[owners[i]] += sizes[i]
    return owners
