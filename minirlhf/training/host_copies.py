"""Copies of weights and state in the memory of the host, for the thread that writes a checkpoint.

The copies of the next checkpoint take the memory of the last one. Fresh memory would cost more than the copy itself,
because the kernel clears each page of it first. So a run that writes in a thread keeps this memory to its end.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from minirlhf.adapters.lora import active_adapter


class HostCopies:
    """The copies of one checkpoint. Its writing must end before the next checkpoint is copied."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def of_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """name -> copy. A name stands for the same tensor in every checkpoint."""
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        _finish(copies)
        return copies

    def of_models(self, models: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Copies of the models. Weights that two models share stay shared.

        The frozen weights under adapters are not copied: they never change, and a checkpoint does not hold them.
        """
        memo: dict[int, Tensor] = {}
        for name, model in models.items():
            adapted = active_adapter(model) is not None
            for key, x in (*model.named_parameters(), *model.named_buffers()):
                if adapted and not x.requires_grad:
                    memo[id(x)] = x
                elif id(x) not in memo:
                    held = self._copy(f"{name}.{key}", x.detach())
                    memo[id(x)] = nn.Parameter(held, x.requires_grad) if isinstance(x, nn.Parameter) else held
        _finish(memo)
        return copy.deepcopy(models, memo)

    def _copy(self, name: str, x: Tensor) -> Tensor:
        held = self._memory.get(name)
        if held is None or (held.shape, held.dtype) != (x.shape, x.dtype):
            held = self._memory[name] = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        return held.copy_(x, non_blocking=True)


def _finish(copies: dict) -> None:
    """Wait for copies from a GPU: only copies into pinned memory are still under way."""
    if any(copy.is_pinned() for copy in copies.values()):
        torch.cuda.synchronize()
