"""A loss for an even use of all experts of a mixture. L layers, B sequences, T tokens, E experts."""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import check_mask


def load_balancing_loss(router_logits: Tensor, mask: Tensor, top_k: int) -> Tensor:
    """E sum_e f_e P_e -> scalar without unit: top_k for an even use of all experts, E if the choice never varies.

    f_e is the fraction of tokens that go to expert e, P_e its mean probability; only P_e has a gradient.
    Fedus et al. 2021, arXiv:2101.03961, Eq. 4-6. In the paper a token goes to one expert, here to `top_k`. The paper
    adds a term for each layer; here one term covers all layers, as the usual coefficients expect.

    Args:
        router_logits: [L, B, T, E] nats.
        mask:          [B, T], the tokens that count. An empty mask gives 0 with zero gradient.
        top_k:         experts for each token, 1 to E.
    Raises: ValueError if the shapes differ, the mask is not bool or top_k is outside 1 to E.
    """
    check_mask("load_balancing_loss", mask, router_logits=router_logits[0, ..., 0])
    experts = router_logits.shape[-1]
    if not 1 <= top_k <= experts:
        raise ValueError(f"load_balancing_loss: top_k must be from 1 to the {experts} experts, got {top_k}")
    tokens = mask[..., None]
    wide = torch.promote_types(router_logits.dtype, torch.float32)
    probs = torch.where(tokens, router_logits, 0).softmax(-1, dtype=wide)
    chosen = torch.zeros_like(probs).scatter(-1, probs.topk(top_k).indices, 1)
    n = (len(router_logits) * mask.sum()).clamp(min=1)
    fractions, mean_probs = (torch.where(tokens, x, 0).sum((0, 1, 2)) / n for x in (chosen, probs))
    return experts * (fractions * mean_probs).sum()
