"""A module whose gradients the processes share, and micro-batches of which all processes have equally many."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from minirlhf.runtime.parallel.pace import equal_counts
from minirlhf.runtime.parallel.sharding import is_sharded, shard
from minirlhf.runtime.parallel.strategy import current

Group = TypeVar("Group", bound=Sequence)


def wrapped(module: nn.Module) -> nn.Module:
    """DistributedDataParallel around the module, or the module itself, sharded."""
    if current().shards:
        return module if is_sharded(module) else shard(module, next(module.parameters()).device)
    # no buffer ever changes, so broadcasting them before each forward would be wasted
    with warnings.catch_warnings():  # torch 2.13 calls this argument forward_sync_buffers; torch 2.11 does not
        warnings.simplefilter("ignore", FutureWarning)
        wrapper = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)
    if dist.get_backend() == "gloo" and dist.get_world_size() > 2:
        wrapper.register_comm_hook(None, _mean_in_order)
    return wrapper


def _mean_in_order(_, bucket):  # torch refuses annotations that are text
    """The mean of a bucket of gradients over the processes, added in the order of ranks.

    gloo adds in an order that depends on an element's place in the bucket, and DDP changes the places after its first
    step. So the first step after a resume would round otherwise than the same step of an uninterrupted run. Two
    processes have one order only.
    """
    gradients, ranks = bucket.buffer(), dist.get_world_size()
    padded = torch.cat([gradients, gradients.new_zeros(-len(gradients) % ranks)])
    parts = torch.empty_like(padded)
    dist.all_to_all_single(parts, padded)  # each process gets its part of the bucket from every process
    mean = sum(parts.view(ranks, -1).unbind()) / ranks
    dist.all_gather_into_tensor(padded, mean)
    gradients.copy_(padded[: len(gradients)])
    done = torch.futures.Future()
    done.set_result(gradients)
    return done


def in_step(groups: Sequence[Group], models: Sequence[nn.Module]) -> Iterator[Group]:
    """Yield the micro-batches of one update: at least one, and as many in all processes if models are sharded.

    DDP averages gradients in the last one only; sharded models do so in each one, so that no process ever holds the
    gradients of all weights.
    """
    groups = filled(groups, next(models[0].parameters()).device)
    for number, group in enumerate(groups, start=1):
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(gradient_sync(model, enabled=number == len(groups)))
            yield group


def gradient_sync(module: nn.Module, enabled: bool) -> AbstractContextManager:
    """Context for forward and backward of one micro-batch: with `enabled` False, DDP exchanges no gradients in it."""
    if enabled or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def filled(groups: Sequence[Group], device: torch.device) -> list[Group]:
    """The micro-batches of this process, and at their end micro-batches without rows.

    There is at least one: a process without rows must exchange gradients too. If models are sharded, there are as many
    as the process with the most has, because all processes must make the same number of forwards.
    """
    number = equal_counts(max(1, len(groups)), torch.empty(0, device=device))
    return [*groups, *([] for _ in range(number - len(groups)))]
