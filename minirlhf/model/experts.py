"""A mixture of experts: a router chooses k of E MLPs for each token (Shazeer et al. 2017, arXiv:1701.06538).

Dropless (Gale et al. 2022, arXiv:2211.15841): an expert takes any number of tokens, so no token loses an expert.

N tokens (padding counts too), D width, E experts, k chosen experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.model.config import ModelConfig


class Router(nn.Module):
    """x [N, D] -> logits [N, E].

    Like the router of transformers 5, it is no nn.Linear, so "all-linear" neither adapts nor quantises it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        # in the weight's dtype: bf16 would change the choice of nearly tied experts (Fedus et al. 2021, section 2.4)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight)


class Experts(nn.Module):
    """x [..., D] -> sum over the k chosen experts e of weight_e(x) expert_e(x), with weights from a softmax over all E.

    Cost: N k rows pass through experts, in one call per expert. Memory: N k D numbers, nothing of size N E D. Once per
    layer the host waits for the device, to learn how many rows each expert gets.
    """

    def __init__(self, config: ModelConfig, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.k, self.normalises = config.num_experts_per_tok, config.norm_topk_prob
        self.gate, self.experts = Router(config), nn.ModuleList(experts)
        self.record: list[Tensor] | None = None  # see `recorded_routing`

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.flatten(0, -2)
        logits_NE = self.gate(x_ND)
        if self.record is not None:
            self.record.append(logits_NE.unflatten(0, x.shape[:-1]))
        weights_Nk, chosen_Nk = self.route(logits_NE)
        order = chosen_Nk.flatten().argsort(stable=True)  # sorts all N k choices by expert
        counts = chosen_Nk.flatten().bincount(minlength=len(self.experts)).tolist()
        rows_by_expert = x_ND[order // self.k].split(counts)
        # in training, run experts without rows too: distributed training waits for a gradient of every weight. And if
        # a process has no rows at all, the result still needs the width of an expert.
        outs = [
            expert(rows)
            for expert, rows in zip(self.experts, rows_by_expert, strict=True)
            if len(rows) or not len(x_ND) or torch.is_grad_enabled()
        ]
        out_NkD = torch.cat(outs)[order.argsort()].unflatten(0, (-1, self.k))
        return (weights_Nk[:, None].to(out_NkD.dtype) @ out_NkD).view_as(x)

    def route(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """-> weights [N, k] and indices [N, k] of each token's experts."""
        probs_NE = logits_NE.softmax(-1, dtype=torch.promote_types(logits_NE.dtype, torch.float32))
        weights_Nk, chosen_Nk = probs_NE.topk(self.k, dim=-1)
        return weights_Nk / weights_Nk.sum(-1, keepdim=True) if self.normalises else weights_Nk, chosen_Nk


@contextmanager
def recorded_routing(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside this context, a forward appends each router's logits [B, T, E], with their graph, to the list.

    For `load_balancing_loss`. The list stays empty for a model without experts. Run the backward pass outside this
    context: checkpointing runs blocks again in the backward pass, and recording would keep their activations alive.
    """
    record: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    for layer in layers:
        layer.record = record
    try:
        yield record
    finally:
        for layer in layers:
            layer.record = None
