"""The weights of a model as its folder holds them: plain Linears with the names and the orientation of the family.

Each weight is made when its turn comes: gathered from all processes if the model is in slices, merged with its adapter,
restored from 4 bits. So no process ever holds more than one such weight.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from minirlhf.adapters.lora import Adapted, active_adapter, gathered
from minirlhf.adapters.quantised import QuantisedLinear
from minirlhf.model.names import core_of, name_in_family
from minirlhf.pretrained.families import is_transposed
from minirlhf.pretrained.weight_files import Weight

SCALAR_HEADS = ("score.", "value_head.")  # heads with one output


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(p, "to_local") for p in model.parameters())


def weights_of(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Weight]:
    """Name in the family's files -> weight. If the model is in slices, all processes must make all weights, in order.

    dtype: of all weights but scalar heads. None keeps the model's.
    """
    core = core_of(model)
    family, found = core.config.model_type, {}
    for name, weight in {**plain_weights(core), **_changed_weights(core, active_adapter(model))}.items():
        key = name_in_family(family, name.replace("value_head.", "score."))
        if dtype and not key.startswith(SCALAR_HEADS):
            weight = weight._replace(dtype=dtype)
        found[key] = _turned(weight) if is_transposed(family, key) else weight
    return found


def plain_weights(module: nn.Module) -> dict[str, Weight]:
    """The parameters, by their names in a module without adapters. Codes of weights in 4 bits are left out."""
    named = {name: p for name, p in module.named_parameters(remove_duplicate=False) if ".adapters." not in name}
    named = {name: p for name, p in named.items() if p.is_floating_point()}
    return {
        name.replace(".base.", "."): Weight(tuple(p.shape), p.dtype, partial(gathered, p)) for name, p in named.items()
    }


def _changed_weights(core: nn.Module, adapter: str | None) -> dict[str, Weight]:
    """Weights that are computed, by our names: of layers with this adapter, and of layers in 4 bits.

    They get the embedding's dtype.
    """
    embedding = core.model.embed_tokens
    dtype = (embedding.base if isinstance(embedding, Adapted) else embedding).weight.dtype
    found, done = {}, set()
    for name, layer in core.named_modules():
        merged = isinstance(layer, Adapted) and adapter in layer.adapters
        if merged:
            done.add(layer.base)
        if merged or (isinstance(layer, QuantisedLinear) and layer not in done):
            weight = Weight(_shape_of(layer), dtype, partial(_restored, layer, dtype))
            found[f"{name.removesuffix('.base')}.weight"] = weight
    return found


def _shape_of(layer: nn.Module) -> tuple[int, int]:
    base = layer.base if isinstance(layer, Adapted) else layer
    if isinstance(base, nn.Embedding):
        return base.num_embeddings, base.embedding_dim
    return base.out_features, base.in_features


@torch.no_grad()
def _restored(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The plain weight of a layer with an adapter or in 4 bits."""
    if is_sharded(layer):
        from minirlhf.runtime.parallel.copies import plain_twin

        layer = plain_twin(layer, lambda p: nn.Parameter(gathered(p).cpu(), requires_grad=False))
    return (layer.merged_weight({layer.active: 1.0}) if isinstance(layer, Adapted) else layer.weight).to(dtype)


def _turned(weight: Weight) -> Weight:
    """The weight as a family stores it that has [in, out] in its files."""
    return Weight(weight.shape[::-1], weight.dtype, lambda: weight.make().T)
