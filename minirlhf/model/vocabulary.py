"""More rows for the embedding and the head: a model for a vocabulary that has grown."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from minirlhf.errors import InputError
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy
from minirlhf.model.transformer import Transformer


def resize_embeddings(model: nn.Module, size: int) -> nn.Module:
    """Give any model here `size` rows of embedding and head, in place; the new ones are the mean of the old.

    A new token's logit is then the mean of the old logits, and exp(mean) <= mean(exp): it gets at most 1 / size of the
    probability, whatever the text (with capped logits: nearly). The logit of a random row has no bound, and can
    outshine all others. Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html

    Types, devices and requires_grad stay, so a row of a frozen embedding does not learn. Make optimizers and adapter
    views afterwards: they would hold the old weights, or the old size.
    Raises: InputError if rows would be lost, or the head has adapters.
    """
    core = model.transformer if isinstance(model, Policy) else model
    if size < core.config.vocab_size:
        raise InputError(
            f"resize_embeddings: size must be at least the {core.config.vocab_size} rows there are, got {size}; rows "
            "beyond the tokenizer's ids do no harm"
        )
    own_head = isinstance(core, Transformer) and not core.config.tie_word_embeddings
    if own_head and not isinstance(core.lm_head, nn.Linear):  # LoRALinear is none
        raise InputError("resize_embeddings: the head has adapters, whose rows are its rows; resize before apply_lora")
    embedding = core.model.embed_tokens
    embedding.weight, embedding.num_embeddings = _grown(embedding.weight, size), size
    if own_head:
        core.lm_head.weight, core.lm_head.out_features = _grown(core.lm_head.weight, size), size
    config = replace(core.config, vocab_size=size)
    for module in core.model.modules():
        if isinstance(vars(module).get("config"), ModelConfig):  # every part that reads it holds it
            module.config = config
    return model


def _grown(weight: nn.Parameter, size: int) -> nn.Parameter:
    """[V, D] -> [size, D]."""
    rows = weight.detach()
    grown = torch.cat((rows, rows.mean(0).expand(size - len(rows), -1)))
    return nn.Parameter(grown, requires_grad=weight.requires_grad)
