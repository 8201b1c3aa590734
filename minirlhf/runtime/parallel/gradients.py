"""Gradients of which some are in slices: their average over processes, and their norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minirlhf.runtime.parallel.strategy import current


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Clip gradients to a norm of at most `most`, after the average of those that FSDP leaves out -> their norm."""
    if not current().shards and not any(isinstance(p, DTensor) for p in parameters):
        return nn.utils.clip_grad_norm_(parameters, most)
    average_whole_gradients(parameters)
    return clip_norm(parameters, most)


@torch.no_grad()
def average_whole_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients of the parameters that are not in slices. FSDP averages the others."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def clip_norm(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients down to a norm of at most `most` -> the norm before, the same on all processes.

    As torch.nn.utils.clip_grad_norm_, for any mixture of slices and whole gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    slices = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    copies = next((_copies(g) for g in gradients if isinstance(g, DTensor)), 1)
    squares = _squares(slices)
    if slices:
        dist.all_reduce(squares)
    norm = (squares / copies + _squares(whole)).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in [*slices, *whole]:
        gradient.mul_(factor.to(gradient.dtype))
    return norm


def _copies(x: DTensor) -> int:
    """The number of processes that hold the same slice."""
    return x.device_mesh.size(0) if x.device_mesh.ndim > 1 else 1


def _squares(tensors: list[Tensor]) -> Tensor:
    """Sum of squares of all elements. A process may hold no element of some tensors, or of all."""
    if not tensors:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm([t.flatten() for t in tensors])).square().sum()
