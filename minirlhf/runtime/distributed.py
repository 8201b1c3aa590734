"""Processes: start-up, wrapping, sums over ranks, backward. With one process, all functions cost nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that prints and writes files."""
    return rank() == 0


def shows(level: str = "normal") -> bool:
    """True on the main process if `--log_level` lets it print lines of this level."""
    from minirlhf.runtime.log_level import allows  # here, so that the core loads no leaf

    return is_main() and allows(level)


def say(text: str, level: str = "normal") -> None:
    """Print on the main process: once, not once per process."""
    if shows(level):
        print(text, flush=True)


def restarted() -> bool:
    """True if torchrun started the processes again after a crash. A run then resumes without `--resume`."""
    from minirlhf import torchrun  # here, so that the core loads no leaf

    return torchrun.restarted()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within this context: the process group that torchrun describes in the environment. One process joins no group."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        restarted()  # one process leaves its note for a restart here; several processes do so when they meet
        yield
        return
    from minirlhf.runtime.rendezvous import joined  # here, so that the core loads no leaf

    with joined(device):
        yield


def local_rows(rows: Sequence) -> Sequence:
    """The rows of this rank: row r, r + world size, ...; none if there are fewer rows than ranks."""
    return rows if world_size() == 1 else rows[rank() :: world_size()]


def wrap(module: nn.Module) -> nn.Module:
    """With several processes: DistributedDataParallel around the module, or the sharded module; else the module itself.

    Call the returned module for every forward that needs gradients. A call of `.module` would skip the averaging of
    gradients without an error.
    """
    if world_size() == 1:
        return module
    from minirlhf.runtime.parallel.wrapping import wrapped  # here, so that the core loads no leaf

    return wrapped(module)


def own_pace(*models: nn.Module, whole: bool = False) -> contextlib.AbstractContextManager:
    """Context in which processes may make different numbers of forwards. See `runtime.parallel.pace`."""
    if world_size() == 1:
        return contextlib.nullcontext()
    from minirlhf.runtime.parallel.pace import own_pace  # here, so that the core loads no leaf

    return own_pace(*models, whole=whole)


def backward(loss: Tensor) -> None:
    """Backward of a loss that is divided by the global count. It multiplies by the world size, because DDP averages."""
    (loss * world_size()).backward()


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all ranks, on every rank. No gradient."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is True on any rank."""
    return flag if world_size() == 1 else bool(all_sum(torch.tensor(int(flag), device=process_device())).item())


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """The list of the values of all ranks, on every rank. Values travel as JSON, so nothing is ever unpickled."""
    if world_size() == 1:
        return [value]
    from minirlhf.runtime.vectors import gather_vectors

    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(process_device())
    return [json.loads(bytes(part.tolist())) for part in gather_vectors(data)]


def process_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
