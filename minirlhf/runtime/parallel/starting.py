"""A sharded model with its first weights. No process ever holds more than one whole weight.

The model is built without storage, and the calls that would fill its weights are noted. Then it is sharded. Each noted
call fills one whole tensor, from which each process keeps its rows. The random numbers are drawn in the order of a
model that is built whole, so both start from equal weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minirlhf.errors import InputError
from minirlhf.runtime.distributed import gather
from minirlhf.runtime.parallel.sharding import fill, local, local_slice, on_device, shard
from minirlhf.runtime.parallel.strategy import current

Rows = Callable[[int, int], Tensor]  # (first, last + 1) -> these rows of a weight


class Postponed(TorchFunctionMode):
    """Inside this context, new parameters have no storage. `calls` lists the calls that would fill them, in order."""

    DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
    CONSTANTS = (Tensor.zero_, Tensor.fill_)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, torch.dtype, Callable[[Tensor], Any]]] = []
        self.random = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.DRAWS:  # all their arguments have names
            return self._note(kwargs.pop("tensor"), partial(func, **kwargs), random=True)
        if func in self.CONSTANTS and args[0].is_meta:
            return self._note(args[0], lambda x: func(x, *args[1:], **kwargs), random=False)
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif func in (torch.zeros, torch.ones) and "meta" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"  # their numbers must not be lost
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor, call: Callable[[Tensor], Any], random: bool) -> Tensor:
        self.calls.append((tensor, tensor.dtype, call))
        self.random |= random
        return tensor


@torch.no_grad()
def started(
    build: Callable[[], nn.Module], device: torch.device, stored: dict[nn.Parameter, Rows] | None = None
) -> nn.Module:
    """The model that `build` makes, sharded as the current strategy says. All processes must call it.

    Args:
        build:  makes the model. It must not read the weights, and must not set a seed after its first random number.
        stored: parameters whose rows are read from elsewhere. `build` may add to it.
    Raises: InputError if the processes have different seeds, or if a weight would stay without numbers.
    """
    stored = {} if stored is None else stored
    with Postponed() as postponed:
        model = build()
    names = {p: name for name, p in model.named_parameters()}
    _check(postponed, names, stored)
    given = {name: p.detach().clone() for p, name in names.items() if not p.is_meta}
    home = torch.device("cpu") if current().cpu_offload else device
    shard(model, device).to_empty(device=home)
    weights = dict(model.named_parameters())
    for name, values in given.items():
        fill(weights[name], values)
    for p, read in stored.items():
        weight = weights[names[p]]
        local(weight).copy_(read(*local_slice(weight)))
    for p, dtype, call in postponed.calls:
        whole = torch.empty(p.shape, dtype=dtype)
        call(whole)  # also for a weight that was replaced: the numbers of the next weights depend on it
        if p in names and p not in stored:
            fill(weights[names[p]], whole)
    return on_device(model, device)  # what stays whole is not offloaded


def _check(postponed: Postponed, names: dict[nn.Parameter, str], stored: dict[nn.Parameter, Rows]) -> None:
    filled = {p for p, _, _ in postponed.calls} | stored.keys()
    if empty := [name for p, name in names.items() if p.is_meta and p not in filled]:
        raise InputError(
            f"started: needed weights that are drawn or stored, but {empty[0]} is computed from other weights; build "
            "the model whole, then shard it"
        )
    seeds = gather(zlib.crc32(bytes(torch.get_rng_state().tolist()))) if postponed.random else [0]
    if len(set(seeds)) > 1:
        raise InputError(
            "started: the processes would draw different weights, because their random generators differ; call "
            "seed_everything with one seed on all processes first"
        )
