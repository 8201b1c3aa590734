"""An embedding and a head of an adapter's own, beside the frozen weights of the base (PEFT's modules_to_save).

LoRA changes Linears by a narrow product. An adapter that learned new tokens also has whole weights [V, D] for the
embedding and the head. They stand beside the base's weights, so a view without the adapter is still the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.adapters.lora import Adapted, LoRALinear, activate, linear_of
from minirlhf.adapters.select import HEAD
from minirlhf.model.names import core_of
from minirlhf.model.policy import trainable
from minirlhf.model.transformer import Transformer
from minirlhf.model.vocabulary import set_config

EMBEDDING = "model.embed_tokens"


class WholeWeight(nn.Module):
    """A weight in place of the base's weight, in fp32 even if the base is in half precision."""

    def __init__(self, weight: Tensor, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(like.device, trainable(like.dtype), copy=True))

    def forward(self, x: Tensor, base: nn.Linear) -> Tensor:
        return F.linear(x, self.adapted(base), base.bias)

    def delta(self, base: nn.Module) -> Tensor:
        """[V, D]: this weight minus the base's weight."""
        return self.weight - base.weight

    def adapted(self, base: nn.Module) -> Tensor:
        return self.weight.to(base.weight.dtype)


class AdaptedEmbedding(Adapted):
    """A frozen embedding with named adapters."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight)

    def plain(self, weight: Tensor) -> nn.Embedding:
        return nn.Embedding.from_pretrained(weight, freeze=True)


def attach_whole(model: nn.Module, weights: Mapping[str, Tensor], adapter_name: str) -> None:
    """Give an adapter its own weights for the embedding or the head; the model computes with them from now on."""
    core = core_of(model)
    for name, weight in weights.items():
        layer = core.get_submodule(name)
        if not isinstance(layer, Adapted):
            layer = (AdaptedEmbedding if name == EMBEDDING else LoRALinear)(layer).train(layer.training)
            core.set_submodule(name, layer)
        layer.adapters[adapter_name] = WholeWeight(weight, layer.base.weight)
    activate(model, adapter_name)


def untie(model: nn.Module) -> None:
    """Give a language model with a tied head a frozen head of its own, equal to the embedding: no output changes."""
    core = core_of(model)
    core.lm_head = linear_of(untied_head(core).weight.detach().clone(), None).train(core.training)
    set_config(core, replace(core.config, tie_word_embeddings=False))


def has_tied_head(model: nn.Module) -> bool:
    core = core_of(model)
    return isinstance(core, Transformer) and core.config.tie_word_embeddings


def untied_head(model: nn.Module) -> nn.Linear:
    """The tied head as a Linear over the base's embedding, without a copy."""
    embedding = core_of(model).get_submodule(EMBEDDING)
    base = embedding.base if isinstance(embedding, Adapted) else embedding
    return linear_of(base.weight.detach(), None)


def frozen_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The base's embedding and head, by the names of their modules; a tied head as an untied head."""
    core = core_of(model)
    found = {EMBEDDING: core.get_submodule(EMBEDDING)}
    if isinstance(core, Transformer):
        found[HEAD] = untied_head(core) if core.config.tie_word_embeddings else core.lm_head
    return {name: layer.base if isinstance(layer, Adapted) else layer for name, layer in found.items()}


@torch.no_grad()
def embedding_of_lora(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """[V, D]: the embedding that LoRA makes of `weight`: W + scale (B A)^T with A [r, V] and B [D, r]."""
    return weight + scale * (B.to(weight.device, torch.float32) @ A.to(weight.device, torch.float32)).T
