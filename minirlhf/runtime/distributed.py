"""Processes: start-up, wrapping, sums over ranks, backward. One process needs no group and pays nothing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minirlhf.errors import InputError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that prints and writes files."""
    return rank() == 0


def say(text: str) -> None:
    """Print on the main process: once, not once per process."""
    if is_main():
        print(text, flush=True)


def restarted() -> bool:
    """True if torchrun has started this process again after a crash: the run then resumes by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group torchrun describes in the environment, if it is larger than one; leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        # A thread of gloo's may still hold the last collective's tensors, and needs the interpreter's lock to drop
        # them; whoever drops the group meanwhile holds that lock and waits for the thread, for ever.
        time.sleep(0.1)
        dist.destroy_process_group()


def share(rows: Sequence, even: bool = True) -> Sequence:
    """This rank's part of a batch: every world-size-th row, so that minibatch m of all ranks is minibatch m of one.

    Raises: InputError if `even` is asked for and the rows cannot be shared evenly.
    """
    if even and len(rows) % world_size():
        raise InputError(f"batch_size must be a multiple of the {world_size()} processes, got {len(rows)}")
    return rows[rank() :: world_size()]


def wrap(module: nn.Module) -> nn.Module:
    """DistributedDataParallel if there are several processes, the module itself otherwise.

    Every forward whose gradient is wanted goes through what this returns: through `.module` gradients would silently
    stay unaveraged.
    """
    if world_size() == 1:
        return module
    # buffers are constants here (weights of 4 bits): sending them again before each forward would cost as much as they
    return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)


def gradient_sync(module: nn.Module, enabled: bool) -> contextlib.AbstractContextManager:
    """Around forward and backward of one micro-batch: ranks exchange gradients in the last one of an update only."""
    if enabled or not isinstance(module, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return module.no_sync()


def backward(loss: Tensor) -> None:
    """loss.backward() for a loss already divided by the global count: times the world size, because DDP averages."""
    (loss * world_size()).backward()


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all ranks, on each of them. No gradient."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def any_rank(flag: bool) -> bool:
    """True on every rank if it is True on one."""
    return flag if world_size() == 1 else bool(all_sum(torch.tensor(int(flag), device=_device())).item())


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """The value of every rank, in the order of ranks, on each of them. Travels as JSON: nothing is ever unpickled."""
    if world_size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())
    sizes = [torch.zeros(1, dtype=torch.int64, device=data.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([data.numel()], device=data.device))
    width = max(int(size) for size in sizes)
    parts = [torch.zeros(width, dtype=torch.uint8, device=data.device) for _ in sizes]
    dist.all_gather(parts, torch.nn.functional.pad(data, (0, width - data.numel())))
    texts = [bytes(part[: int(size)].tolist()) for part, size in zip(parts, sizes, strict=True)]
    return [json.loads(text) for text in texts]


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
