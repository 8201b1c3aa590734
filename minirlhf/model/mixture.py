"""Mixtures of the distributions or the weights of two models."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError
from minirlhf.model.cache import KVCache
from minirlhf.model.policy import Policy
from minirlhf.model.transformer import Transformer
from minirlhf.runtime.distributed import world_size


class GeometricMixture(nn.Module):
    """pi^(1 - a) pi_ref^a, normalised: logits (1 - a) z + a z_ref (Munos et al. 2023, arXiv:2312.00886, Eq. 4).

    `generate` uses it like a transformer. Its hidden states are both models' hidden states side by side,
    and its cache has the layers of both models. Both models must have the same config.
    """

    def __init__(self, transformer: Transformer, reference: Transformer, reference_weight: float) -> None:
        super().__init__()
        self.models = (transformer, reference)  # a tuple registers no weights: the models own their weights
        self.weight = reference_weight
        shape = transformer.config
        layers = {"num_hidden_layers": 2 * shape.num_hidden_layers, "layer_types": 2 * shape.layer_types}
        self.config = replace(shape, **layers)

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.models[0].dtype

    def model(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> hidden states of both models [B, T, 2 D]; see `Trunk.forward`."""
        halves = (None, None) if cache is None else halves_of(cache)
        hidden = [part.model(input_ids, attention_mask, half) for part, half in zip(self.models, halves, strict=True)]
        if cache is not None:
            cache.lengths, cache.width = halves[0].lengths, halves[0].width
        return torch.cat(hidden, dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """-> mixed logits [B, T, V]."""
        return self.logits(self.model(input_ids, attention_mask, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., 2 D] -> [..., V]. Each model applies its own soft cap."""
        first, second = hidden.chunk(2, dim=-1)
        return (1 - self.weight) * self.models[0].logits(first) + self.weight * self.models[1].logits(second)


def halves_of(cache: KVCache) -> list[KVCache]:
    """The first and the second half of the layers, in the same storage: a cache for each of two models."""
    middle, halves = len(cache.keys_LBSKE) // 2, [copy.copy(cache), copy.copy(cache)]
    for half, layers in zip(halves, (slice(0, middle), slice(middle, None)), strict=True):
        half.keys_LBSKE, half.values_LBSKE = cache.keys_LBSKE[layers], cache.values_LBSKE[layers]
    return halves


@torch.no_grad()
def move_towards(reference: Policy, policy: Policy, policy_weight: float) -> None:
    """reference <- policy_weight * policy + (1 - policy_weight) * reference, in place. A weight of 1 copies.

    Gorbatovski et al. 2024, arXiv:2404.09656, Eq. 3 and 4 (TR-DPO).
    Raises: InputError if their parameters differ, as when the reference is the policy's base without the adapter.
    """
    if world_size() > 1:
        from minirlhf.runtime.parallel.sharding import in_slices  # here, because one process needs no FSDP

        reference, policy = in_slices(reference), in_slices(policy)
    old, new = (dict(model.transformer.named_parameters()) for model in (reference, policy))
    if old.keys() != new.keys():
        raise InputError("move_towards: the reference must have all weights of the policy; use copy_of(policy)")
    for name, p in old.items():
        if p.is_floating_point():  # a base in 4 bits is frozen, the same in both
            p.lerp_(new[name].to(p.dtype), policy_weight)
