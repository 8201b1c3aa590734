"""SFT of a mixture of experts: the router loss beside the loss of the tokens. B rows, T tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minirlhf.data.batches import Sequences
from minirlhf.losses.router import load_balancing_loss
from minirlhf.model.experts import recorded_routing


def losses_with_router(trainer: Any, batch: Sequences, count: Tensor, all_tokens: Tensor) -> dict[str, Tensor]:
    """{loss, entropy, router_loss} of a micro-batch of the SFTTrainer `trainer`.

    The router loss is not a mean over tokens, so each micro-batch has a router loss. Its weight is the micro-batch's
    share of `all_tokens`, the tokens of the whole update.
    """
    shape, coef = trainer.policy.transformer.config, trainer.config.router_loss_coef
    with recorded_routing(trainer.policy) as router_logits:
        terms = trainer.losses(batch, count)
    if router_logits:
        balance = load_balancing_loss(torch.stack(router_logits), batch.attention_mask, shape.num_experts_per_tok)
        terms["router_loss"] = balance * batch.attention_mask.sum() / all_tokens
        coef = shape.router_aux_loss_coef if coef is None else coef
        terms["loss"] = terms["loss"] + coef * terms["router_loss"]
    return terms
