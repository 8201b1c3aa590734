"""Rows of the embedding and the head: more rows for a vocabulary that has grown, fewer where rows are padding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError
from minirlhf.model.cache import KVCache
from minirlhf.model.config import ModelConfig
from minirlhf.model.names import core_of
from minirlhf.model.transformer import Transformer


def resize_embeddings(model: nn.Module, size: int) -> nn.Module:
    """Grow the embedding and the head of any model to `size` rows, in place. A new row is the mean of the old rows.

    So a new token's logit is the mean of the old logits. As exp(mean) <= mean(exp), its probability is at most
    1 / size for every text (with capped logits: nearly). A random new row could have any logit.
    Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html

    dtype, device and requires_grad stay, so a new row of a frozen embedding does not learn. Make optimizers and
    adapter views afterwards: an earlier optimizer or view would hold the old weights.
    Raises: InputError if rows would be lost, or if the head has adapters.
    """
    core = core_of(model)
    if size < core.config.vocab_size:
        raise InputError(
            f"resize_embeddings: size must be at least {core.config.vocab_size}, the number of rows now, got {size}; "
            "a model may have more rows than its tokenizer has ids"
        )
    untied = isinstance(core, Transformer) and not core.config.tie_word_embeddings
    embedding = core.model.embed_tokens
    if (untied and not isinstance(core.lm_head, nn.Linear)) or not isinstance(embedding, nn.Embedding):
        raise InputError(
            "resize_embeddings: the embedding or the head has adapters of the old size; resize before apply_lora"
        )
    embedding.weight, embedding.num_embeddings = _grown(embedding.weight, size), size
    if untied:
        core.lm_head.weight, core.lm_head.out_features = _grown(core.lm_head.weight, size), size
    set_config(core, replace(core.config, vocab_size=size))
    return model


def set_config(core: nn.Module, config: ModelConfig) -> None:
    """Give a model another config: trunk and attention each hold it."""
    for module in core.model.modules():
        if isinstance(vars(module).get("config"), ModelConfig):
            module.config = config


def _grown(weight: nn.Parameter, size: int) -> nn.Parameter:
    """[V, D] -> [size, D]."""
    rows = weight.detach()
    grown = torch.cat((rows, rows.mean(0).expand(size - len(rows), -1)))
    return nn.Parameter(grown, requires_grad=weight.requires_grad)


class FirstIds:
    """A transformer whose distribution has its first `ids` ids alone. `generate` uses it like a transformer."""

    def __init__(self, transformer: Transformer, ids: int) -> None:
        self.transformer, self.ids = transformer, ids
        self.config = replace(transformer.config, vocab_size=ids)
        self.device, self.dtype, self.model = transformer.device, transformer.dtype, transformer.model

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        return self.logits(self.model(input_ids, attention_mask, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.transformer.logits(hidden)[..., : self.ids]
