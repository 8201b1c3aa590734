"""The models of RLHF, each built on a transformer: policy (values optional), value model, reward model.

B sequences, T tokens, D width, V vocabulary. Column t of an output speaks about choosing token t, column 0 is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.errors import InputError
from minirlhf.losses.logprobs import linear_logps_and_entropy
from minirlhf.losses.masking import predicted_tokens, shift_right
from minirlhf.model.config import ModelConfig
from minirlhf.model.transformer import Transformer
from minirlhf.runtime.distributed import world_size


class TokenOutputs(NamedTuple):
    logps: Tensor  # [B, T] nats
    entropy: Tensor | None  # [B, T] nats; None if not asked for
    values: Tensor | None  # [B, T] score units, estimated just before token t is chosen; None without value head


class Policy(nn.Module):
    """A transformer that gives the log-prob of each token and, with a value head on its trunk, value estimates."""

    def __init__(self, transformer: Transformer, value_head: bool = False) -> None:
        super().__init__()
        self.transformer = transformer
        self.value_head = ValueHead(transformer) if value_head else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        temperature: float = 1.0,
        head: Callable[..., Any] | None = None,
        wanted: Tensor | None = None,
        entropy: bool = True,
    ) -> TokenOutputs | Any:
        """ids [B, T], mask [B, T] bool -> TokenOutputs, 0 at padding. Every gradient passes through this forward.

        Logits are computed in chunks: [B, T, V] never exists as a whole. With a `head`, such as a fused loss or a
        divergence from a teacher, the policy returns head(hidden [B, T, D] in model order, weight [V, D],
        softcap=the cap of the logits or None) instead. So the head's gradient, too, passes through the forward of DDP
        or FSDP.

        wanted: [B, T] bool, the real tokens whose log-prob, entropy and value are read, such as the completions. The
            others are 0 and take less time; a head must not read them. None: all.
        """
        hidden = self.hidden(input_ids, attention_mask, wanted)
        weight, cap = self.transformer.head_weight, self.transformer.config.final_logit_softcapping
        if head is not None:
            return head(hidden, weight, softcap=cap)
        if wanted is None and hidden.device.type == "cpu":  # a GPU's host would wait for the number of real tokens
            wanted = attention_mask
        options = {"softcap": cap, "mask": wanted, "entropy": entropy}
        logps, entropies = linear_logps_and_entropy(hidden, weight, input_ids, temperature, **options)
        read = attention_mask if wanted is None else wanted
        values = None if self.value_head is None else self.value_head(hidden, read)
        logps, entropies = (x if x is None else torch.where(attention_mask, x, 0) for x in (logps, entropies))
        return TokenOutputs(logps, entropies, values)

    @torch.no_grad()
    def read_values(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor | None = None) -> Tensor:
        """The values [B, T] without gradient, 0 where they are not wanted. The language-model head is not computed."""
        hidden = self.hidden(input_ids, attention_mask, wanted)
        return self.value_head(hidden, attention_mask if wanted is None else wanted)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor | None) -> Tensor:
        """[B, T, D] in model order: position t speaks about token t + 1. The only line that reads the batch."""
        return self.transformer.model(input_ids, attention_mask, places=places_before(wanted))


def places_before(wanted: Tensor | None) -> Tensor | None:
    """Places among all B T, of the hidden states that speak about wanted tokens; None: all, on a GPU to save a wait."""
    if wanted is None or wanted.device.type != "cpu":
        return None
    return predicted_tokens(wanted)[1].flatten().nonzero()[:, 0]


def copy_of(policy: Policy) -> Policy:
    """A reference policy: a frozen copy of all weights, adapters included, without value head."""
    reference, copied = type(policy)(policy.transformer), copy.deepcopy
    if world_size() > 1:
        from minirlhf.runtime.parallel.copies import copied  # here, so that the core loads no leaf

    return copied(reference).requires_grad_(False).eval()


def check_policy(who: str, policy: Policy, reference: Policy | None = None) -> None:
    """Raise InputError if the policy has a value head, or if the reference shares weights that the policy trains.

    For trainers whose loss reads no values: a value head would stay untrained. `who` names the trainer in the error.
    """
    if policy.value_head is not None:
        raise InputError(f"{who}: needed a policy without value head, because no loss here trains a value head")
    if reference is not None:
        check_reference(who, policy, reference)


def check_reference(who: str, policy: Policy, reference: Policy) -> None:
    """Raise InputError if the reference holds weights that the policy trains: the KL would always be 0."""
    trained = {id(p) for p in policy.transformer.parameters() if p.requires_grad}
    if any(id(p) in trained for p in reference.transformer.parameters()):
        raise InputError(
            f"{who}: the reference must be a frozen copy, got the policy itself; use copy_of(policy), or "
            "reference_of(policy) where adapters are trained"
        )


class ValueHead(nn.Linear):
    """Hidden state before token t -> the value of column t. It starts at 0: random values would only add noise."""

    def __init__(self, transformer: Transformer) -> None:
        like = {"device": transformer.device, "dtype": trainable(transformer.dtype)}
        super().__init__(transformer.config.hidden_size, 1, **like)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        values = shift_right(linear_at_full_precision(self, hidden).squeeze(-1))
        return torch.where(attention_mask, values, 0)


class ValueModel(nn.Module):
    """A value head on a trunk of its own: ids [B, T], mask [B, T] bool -> values [B, T], 0 if not wanted."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = transformer.model
        self.value_head = ValueHead(transformer)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor | None = None) -> Tensor:
        hidden = self.model(input_ids, attention_mask, places=places_before(wanted))
        return self.value_head(hidden, attention_mask if wanted is None else wanted)


class RewardModel(nn.Module):
    """A score per sequence, read at the last real token: ids [B, T], mask [B, T] bool -> scores [B]."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = transformer.model
        like = {"device": transformer.device, "dtype": trainable(transformer.dtype)}
        self.score = nn.Linear(transformer.config.hidden_size, 1, bias=False, **like)
        nn.init.normal_(self.score.weight, std=(transformer.config.hidden_size + 1) ** -0.5)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last = (attention_mask.sum(-1) - 1).clamp(min=0)
        places = torch.arange(len(last), device=last.device) * input_ids.shape[1] + last
        at_last = self.model(input_ids, attention_mask, places=places).flatten(0, 1).index_select(0, places)
        return linear_at_full_precision(self.score, at_last).sum(-1)  # of one number; FSDP refuses to return a view


def trainable(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a new head or adapter: at least fp32, because bf16 and fp16 lose small updates."""
    return torch.promote_types(dtype, torch.float32)


def linear_at_full_precision(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a head in the dtype of its weight: under bf16 autocast, scores would have only two digits."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def disable_dropout(model: nn.Module) -> None:
    """Turn dropout off permanently: with it, policy and old log-probs would differ by noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
