"""The strategy: how several processes hold a model. The programs choose it by --parallel; your own script enters it.

with using(Strategy("fsdp")):
    trainer = SFTTrainer(policy, ...)  # shards the policy in place
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from minirlhf.errors import InputError

Mode = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Strategy:
    """N processes, a model of P parameters.

    ddp:  each process holds the model; gradients are averaged.
    fsdp: each process holds 1/N of weights, gradients and moments, and gathers a block's weights for its forward
          (ZeRO-3; PyTorch FSDP: Zhao et al. 2023, arXiv:2304.11277). Without `reshard_after_forward`, the gathered
          weights stay until the backward pass (ZeRO-2).
    hsdp: `replicas` groups of processes; each group shards the model as fsdp does.
    """

    mode: Mode = "ddp"
    replicas: int = 1  # of hsdp
    cpu_offload: bool = False  # slices, gradients and moments stay in the memory of the machine
    reshard_after_forward: bool = True
    gather: Literal["auto", "whole", "layers"] = "auto"  # weights while a policy samples
    param_dtype: torch.dtype | None = None  # of gathered weights; the slices keep their own dtype
    shard_optimizer: bool = False  # of ddp: each process updates a part of the weights; see groups.py

    @property
    def shards(self) -> bool:
        """True if weights are in slices."""
        return self.mode in ("fsdp", "hsdp")


_strategy = Strategy()


def current() -> Strategy:
    return _strategy


@contextlib.contextmanager
def using(strategy: Strategy) -> Iterator[Strategy]:
    """Within this context, `wrap` and `shard` follow the strategy."""
    global _strategy
    before, _strategy = _strategy, strategy
    try:
        yield strategy
    finally:
        _strategy = before


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes: [shards], or [replicas, shards] for hsdp.

    Raises: InputError if the processes cannot be split into the replicas, or if none has joined a group.
    """
    strategy = current()
    if not dist.is_initialized():
        raise InputError(
            f"Strategy: {strategy.mode} needed a group of processes, got none; start with torchrun, within `session`"
        )
    ranks, replicas = dist.get_world_size(), strategy.replicas if strategy.mode == "hsdp" else 1
    if ranks % replicas:
        raise InputError(
            f"Strategy: hsdp needed replicas that divide the {ranks} processes, got {replicas}; "
            "choose a number that divides the number of processes"
        )
    return _mesh(dist.group.WORLD, device.type, replicas if strategy.mode == "hsdp" else None, ranks)


@cache  # a mesh makes process groups; all models of a program share them
def _mesh(world: dist.ProcessGroup, device_type: str, replicas: int | None, ranks: int) -> DeviceMesh:
    if replicas is None:
        return init_device_mesh(device_type, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (replicas, ranks // replicas), mesh_dim_names=("replica", "shard"))
