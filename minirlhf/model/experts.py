"""A mixture of experts: many MLPs, of which a router chooses a few for each token (Shazeer et al. 2017,
arXiv:1701.06538). Dropless: every token gets all that it chose, however many others chose the same (Gale et al. 2022,
arXiv:2211.15841).

N tokens, padding among them as in any MLP here, D width, E experts, k of them for each token.
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

    No nn.Linear, as in transformers 5: what adapts or quantises "all-linear" leaves it alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        # in the weights' own type: autocast would send nearly tied tokens elsewhere (Fedus et al. 2021, section 2.4)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight)


class Experts(nn.Module):
    """x [..., D] -> sum over its k experts e of share_e(x) expert_e(x), the shares from a softmax over all E.

    Cost: N k rows through an expert, in E products of as many rows as came, and N k D numbers of memory; nothing of
    size N E D. The host waits once a layer for how many that is.
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
        shares_Nk, chosen_Nk = self.route(logits_NE)
        order = chosen_Nk.flatten().argsort(stable=True)  # of all N k choices, by expert
        counts = chosen_Nk.flatten().bincount(minlength=len(self.experts)).tolist()
        parts = zip(self.experts, x_ND[order // self.k].split(counts), strict=True)
        # an expert that nobody chose still has a gradient, 0: processes wait for one another's gradient of every weight
        outs = [expert(rows) for expert, rows in parts if len(rows) or torch.is_grad_enabled()]
        out_NkD = torch.cat(outs)[order.argsort()].unflatten(0, (-1, self.k))
        return (shares_Nk[:, None].to(out_NkD.dtype) @ out_NkD).view_as(x)

    def route(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """-> shares and numbers of the k experts of each token [N, k]."""
        probs_NE = logits_NE.softmax(-1, dtype=torch.promote_types(logits_NE.dtype, torch.float32))
        shares_Nk, chosen_Nk = probs_NE.topk(self.k, dim=-1)
        return shares_Nk / shares_Nk.sum(-1, keepdim=True) if self.normalises else shares_Nk, chosen_Nk


@contextmanager
def recorded_routing(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, a forward appends each router's logits [B, T, E] to the list, with their graph; none if it has none.

    For `load_balancing_loss`. A window and not a habit: gradient checkpointing runs blocks again in the backward pass,
    and logits kept then would keep each block's activations.
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
