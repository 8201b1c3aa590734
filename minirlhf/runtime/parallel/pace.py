"""Forwards of a sharded model at each process's own pace.

A sharded model gathers the weights of each block for its forward, so all processes must make the same number of
forwards; a process that makes one more waits for ever. Sampling and evaluation cannot promise equal numbers.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from minirlhf.runtime.memory import share_of_process
from minirlhf.runtime.parallel.sharding import gathered_models, in_slices, sharded_parts, whole_of
from minirlhf.runtime.parallel.strategy import current

WHOLE_SHARE = 0.5  # of the free memory that the gathered weights may take

_prepared: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextlib.contextmanager
def own_pace(*models: nn.Module, whole: bool = False) -> Iterator[None]:
    """Within this context, processes may make different numbers of forwards of models, or of their parts.

    models: several models make their forwards in this order, one after the other.
    whole:  gather all weights first if the strategy says so, or if they fit. Otherwise the processes keep step: a
            process that has finished makes empty forwards until all have finished.
    """
    roots = [root for model in models if (root := whole_of(model)) is not None and id(root) not in gathered_models]
    if not roots:
        yield
        return
    gathered_models.update(map(id, roots))
    for root in roots:
        _prepare(root)
    try:
        with gathered(roots) if whole and _gathers(roots) else _in_step(roots):
            yield
    finally:
        gathered_models.difference_update(map(id, roots))


@torch.inference_mode(False)
@torch.no_grad()
def _prepare(root: nn.Module) -> None:
    """The first forward of a sharded model must be of the whole model, outside of inference mode."""
    if root not in _prepared:
        ids = torch.ones(1, 1, dtype=torch.int64, device=next(root.parameters()).device)
        root(ids, torch.ones_like(ids, dtype=torch.bool))
        in_slices(root)
        _prepared.add(root)


@contextlib.contextmanager
def gathered(roots: Sequence[nn.Module]) -> Iterator[None]:
    """All weights of sharded models, on each process. Afterwards the models are in slices again."""
    parts = [(part, root) for root in roots for part in sharded_parts(root)]
    for part, _ in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part, root in parts:
            part.reshard()
            part.set_reshard_after_forward(current().reshard_after_forward and part is not root, recurse=False)


@contextlib.contextmanager
def _in_step(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Before each forward, a process tells the others that it makes one. The sum says if any process goes on."""
    trunks = [next(module for module in root.modules() if _is_trunk(module)) for root in roots]
    device = next(roots[0].parameters()).device
    outer = [root for root in roots if isinstance(root, FSDPModule)]  # of a shared base, only the blocks are in slices
    for root in outer:
        root.unshard()  # the weights outside of the blocks; a part of the model may be called without the whole

    def before_forward(*_: object) -> None:
        _running(1, device)

    hook = trunks[0].register_forward_pre_hook(before_forward)
    try:
        yield
        hook.remove()
        with torch.no_grad():
            while _running(0, device):
                for trunk in trunks:
                    trunk(torch.ones(1, 1, dtype=torch.int64, device=device))
    finally:
        hook.remove()
        for root in outer:
            root.reshard()


def _is_trunk(module: nn.Module) -> bool:
    return any(isinstance(child, nn.ModuleList) for child in module.children())


def _running(number: int, device: torch.device) -> int:
    """The number of processes that make a forward now."""
    total = torch.tensor(number, device=device)
    dist.all_reduce(total)
    return int(total)


def _gathers(roots: Sequence[nn.Module]) -> bool:
    """True if the weights shall be gathered for sampling; the same answer on all processes."""
    if current().gather != "auto":
        return current().gather == "whole"
    parameters = [p for root in roots for p in root.parameters()]
    itemsize = (current().param_dtype or parameters[0].dtype).itemsize
    size, device = sum(p.numel() for p in parameters) * itemsize, parameters[0].device
    free = torch.tensor(float(share_of_process(device)), device=device, dtype=torch.float32)
    dist.all_reduce(free, dist.ReduceOp.MIN)
    return size < WHOLE_SHARE * float(free)


def equal_counts(number: int, like: Tensor) -> int:
    """The greatest number of any process if models are sharded, else this process's number."""
    if not current().shards or not dist.is_initialized():
        return number
    most = torch.tensor(number, device=like.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
