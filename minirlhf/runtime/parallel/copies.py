"""Models of a job in slices: a loaded model is sharded, and a model made of parts of another model becomes a copy.

`RewardModel(policy.transformer)` in slices cannot work: the slices belong to the policy, and only the policy's forward
gathers them all. `placed` copies such a model slice by slice, so no process ever holds all weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from minirlhf.runtime.distributed import process_device
from minirlhf.runtime.parallel.sharding import full, in_slices, local, on_device, shard, whole_of
from minirlhf.runtime.parallel.strategy import current


def fresh(build: Callable[[], nn.Module]) -> nn.Module:
    """The model that `build` makes, with random weights; in slices, no process ever holds all of them."""
    if not current().shards:
        return build()
    from minirlhf.runtime.parallel.starting import started

    return started(build, process_device())


def placed(model: nn.Module, device: torch.device, own: bool = False) -> nn.Module:
    """The model on the device, as the current strategy says: whole, or in slices. It takes the place of `model`.

    Parts of another model in slices move into slices of their own: the other model has no weights any more.
    own: move a model that is in slices already. FSDP keeps the flags `requires_grad` of its first forward, so weights
        can only be frozen in a new copy.
    """
    if not current().shards:
        return model.to(device)
    root = whole_of(model)
    if root is None:
        return shard(model, device)
    return on_device(model, device) if root is model and not own else moved(model, copied)


def shared(base: nn.Module, device: torch.device) -> nn.Module:
    """The base of several models, such as views with an adapter each; its blocks are in slices if the strategy shards.

    A base in slices moves, because the whole model that gathers it is another.
    """
    if not current().shards:
        return base
    if whole_of(base) is None:
        return shard(base, device, blocks_only=True)
    return moved(base, lambda model: copied(model, blocks_only=True))


def moved(model: nn.Module, copy: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """copy(model), the copy that takes the place of a model in slices: the memory of the model is free afterwards.

    A program may hold the model to its end, so its slices would stay beside the copy. A forward of the model, or of a
    part of it, raises a RuntimeError from now on.
    """
    twin, root = copy(model), whole_of(model)
    slices = [local(p).untyped_storage() for p in root.parameters() if isinstance(p, DTensor)]
    root._apply(lambda x: torch.empty_like(x, device="meta") if isinstance(x, DTensor) else x)  # readers get an error
    for part in root.modules():
        part.register_forward_pre_hook(_refuse, prepend=True)
    for storage in slices:  # FSDP still refers to them
        storage.resize_(0)
    return twin


def _refuse(part: nn.Module, *_: object) -> None:
    raise RuntimeError(f"{type(part).__name__}: its weights have moved to the model that `placed` or `shared` returned")


@torch.no_grad()
def copied(
    model: nn.Module, change: Callable[[nn.Module], nn.Module] = lambda twin: twin, blocks_only: bool = False
) -> nn.Module:
    """A copy of all weights, in slices if the weights of `model` are.

    change:      changes the modules or the dtype of the copy before it is in slices. A new parameter of a copy in
                 slices then has a slice without numbers.
    blocks_only: of a copy in slices, see `shard`.
    """
    root = whole_of(model)
    if root is None:
        return change(copy.deepcopy(model))
    in_slices(root)
    sources = dict(model.named_parameters())
    first = next(p for p in sources.values() if isinstance(p, DTensor))
    device = torch.device(first.device_mesh.device_type)
    twin = shard(change(plain_twin(model, _without_storage)), device, blocks_only)
    twin._apply(lambda x: torch.empty_like(x, device=first.device) if x.is_meta else x)
    for name, p in twin.named_parameters():
        if isinstance(source := sources.get(name), DTensor):
            local(p).copy_(local(source) if isinstance(p, DTensor) else full(source))
    return twin


def plain_twin(
    module: nn.Module, of: Callable[[nn.Parameter], nn.Parameter], memo: dict[nn.Parameter, nn.Parameter] | None = None
) -> nn.Module:
    """A copy of the modules, of the classes before sharding, with the parameters of(p). Tied weights stay tied."""
    memo = {} if memo is None else memo
    plain = type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)  # [FSDP class, FSDPModule, ...]
    twin = object.__new__(plain)
    nn.Module.__init__(twin)  # no hook of the original
    twin.__dict__ |= {key: value for key, value in vars(module).items() if key[0] != "_"}
    for name, p in module._parameters.items():
        if p is not None and p not in memo:
            memo[p] = of(p)
        twin.register_parameter(name, p if p is None else memo[p])
    for name, buffer in module._buffers.items():
        kept = name not in module._non_persistent_buffers_set
        twin.register_buffer(name, buffer if buffer is None else buffer.clone(), persistent=kept)
    for name, child in module._modules.items():
        twin.add_module(name, child if child is None else plain_twin(child, of, memo))
    return twin


def _without_storage(p: nn.Parameter) -> nn.Parameter:
    """A parameter of the same shape: on the meta device if p is in slices, else a copy."""
    values = torch.empty(p.shape, dtype=p.dtype, device="meta") if isinstance(p, DTensor) else p.detach().clone()
    return nn.Parameter(values, p.requires_grad)
