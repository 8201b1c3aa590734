"""Models in slices (FSDP2). Each parameter is a DTensor: this process holds some rows of dimension 0.

The class of a sharded model is a subclass of the model's class, so `isinstance` still answers as before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from minirlhf.runtime.parallel.strategy import current, mesh_of

# The attribute of a module that refers to the sharded model that it is a part of: a part cannot gather the weights that
# belong to the whole. Views of a module, such as those of adapters, share its attributes, parameters and hooks.
WHOLE = "_whole"
KEPT_WHOLE = {"adapters", "value_head", "score"}  # names of modules

gathered_models: set[int] = set()  # ids of sharded models whose weights stay gathered until a context ends; see pace.py


def shard(model: nn.Module, device: torch.device, blocks_only: bool = False) -> nn.Module:
    """Shard a model in place, each block and then the rest, as the current strategy says -> the model.

    blocks_only: leave the rest whole: embedding, last norm and head. Then several models may share the blocks, because
        a block gathers its weights itself, and the rest is gathered by the forward of the whole model only.

    The model moves to the device block by block. A model on the meta device stays there: `to_empty` then makes its
    slices. Adapters and heads of one number stay whole on each process, in their own dtype: scores of a head in bf16
    have two digits. So do parameters of another dtype than the first parameter, but not the codes of weights in 4 bits.
    """
    strategy, dtype_of_slices = current(), next(model.parameters()).dtype
    named = model.named_parameters()
    own = {p for name, p in named if {*name.split(".")} & KEPT_WHOLE}
    whole = own | {p for p in model.parameters() if p.is_floating_point() and p.dtype != dtype_of_slices}
    dtype, reduce = strategy.param_dtype, torch.float32 if strategy.param_dtype else None
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if strategy.cpu_offload else OffloadPolicy()
    options = {
        "mesh": mesh_of(device),
        # inputs keep their dtype: bf16 would round the angles of rotary positions
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce, cast_forward_inputs=False),
        "offload_policy": offload,
        "ignored_params": whole,
    }
    for block in blocks_of(model):
        fully_shard(on_device(block, device), reshard_after_forward=strategy.reshard_after_forward, **options)
    on_device(model, device)
    if not blocks_only:
        fully_shard(model, **options)  # embedding, last norm, heads: gathered until the backward pass
        model.register_forward_hook(_reshard_after_reading)
    for part in model.modules():
        vars(part)[WHOLE] = model  # a part keeps the whole alive; not as a submodule
    return model


def _reshard_after_reading(model: nn.Module, *_: object) -> None:
    """FSDP leaves the weights outside of the blocks gathered after a forward; only a backward pass needs them again.

    Gathered weights are other parameters, so an optimizer that is made now would train none of the model's. A view of
    the model shares this hook.
    """
    root = vars(model)[WHOLE]
    if not torch.is_grad_enabled() and id(root) not in gathered_models:
        root.reshard()


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with all that is not in slices on the device, such as new adapters."""
    return model._apply(lambda x: x if isinstance(x, DTensor) or x.is_meta else x.to(device))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of the trunks: the children of the outermost lists of modules."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return [block for layers in outer for block in layers]


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole_of(part: nn.Module) -> nn.Module | None:
    """The sharded model that this module is, is a part of, or stands around. None: not sharded."""
    return next((vars(module)[WHOLE] for module in part.modules() if WHOLE in vars(module)), None)


def sharded_parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def in_slices(model: nn.Module) -> nn.Module:
    """The model with no gathered weights: a forward without gradient leaves the weights outside of the blocks."""
    for part in sharded_parts(model):
        part.reshard()
    return model


def local_slice(x: Tensor) -> tuple[int, int]:
    """(first, last + 1) of the rows of dimension 0 that this process holds."""
    rows = x.shape[0] if x.dim() else 1
    if not isinstance(x, DTensor):
        return 0, rows
    for axis, placement in enumerate(x.placements):
        if placement == Shard(0):
            size = -(-rows // x.device_mesh.size(axis))
            first = min(x.device_mesh.get_local_rank(axis) * size, rows)
            return first, min(first + size, rows)
    return 0, rows


def local(x: Tensor) -> Tensor:
    """The rows that this process holds, without gradient."""
    return x.detach().to_local() if isinstance(x, DTensor) else x.detach()


def full(x: Tensor) -> Tensor:
    """All rows, gathered from all processes. All processes must call it, in the same order."""
    if not isinstance(x, DTensor):
        return x.detach()
    return x.detach().to(x.device_mesh.device_type).full_tensor()  # offloaded slices travel through the device


@torch.no_grad()
def fill(x: Tensor, values: Tensor) -> None:
    """Copy the rows of this process out of `values`, a tensor of the whole shape."""
    first, last = local_slice(x)
    (local(x) if isinstance(x, DTensor) else x).copy_(values[first:last] if x.dim() else values)


@torch.no_grad()
def rebuilt(build: Callable[[], nn.Module], source: nn.Module, device: torch.device) -> nn.Module:
    """A sharded model with the weights of a sharded model. No process ever holds all weights.

    Args:
        build:  makes the model: its trunk on the meta device; a new head on a real device, with its first weights,
                which are the same on all processes.
        source: has the trunk's weights. The name of a weight may begin with "transformer." in only one of the models.
    """
    model = build()
    heads = {name: p.detach().clone() for name, p in model.named_parameters() if not p.is_meta}
    model = shard(model, device).to_empty(device=device)
    found = {name.removeprefix("transformer."): p for name, p in source.named_parameters()}
    for name, p in model.named_parameters():
        if name in heads:
            fill(p, heads[name])
        else:
            local(p).copy_(local(found[name.removeprefix("transformer.")]))
    return model
