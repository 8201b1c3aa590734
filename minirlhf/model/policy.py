"""What RLHF asks of a transformer: a policy (with values), a value model, a reward model.

B sequences, T tokens. Per-token outputs obey the index rule: column t speaks about choosing token t, column 0 is 0.
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
from minirlhf.losses.masking import shift_right
from minirlhf.model.config import ModelConfig
from minirlhf.model.transformer import Transformer


class TokenOutputs(NamedTuple):
    logps: Tensor  # [B, T] nats
    entropy: Tensor  # [B, T] nats
    values: Tensor | None  # [B, T] score units, made just before token t was chosen


class Policy(nn.Module):
    """A transformer that says how likely its tokens are and, with a value head on the same trunk, what it expects."""

    def __init__(self, transformer: Transformer, value_head: bool = False) -> None:
        super().__init__()
        self.transformer = transformer
        self.value_head = ValueHead(transformer) if value_head else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        temperature: float = 1.0,
        head: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> TokenOutputs | Any:
        """The one forward that carries gradient: ids [B, T], mask [B, T] bool -> TokenOutputs, 0 at padding.

        Logits exist a chunk at a time only: [B, T, V] is never built. A `head`, called with the hidden states [B, T,
        D] in model order and the head's weight [V, D], takes the place of all that follows the trunk, and its answer is
        returned: a fused loss, a divergence from a teacher. So its gradient, too, passes through DDP's or FSDP's
        forward.
        """
        hidden = self.transformer.model(input_ids, attention_mask)
        weight, cap = self.transformer.head_weight, self.transformer.config.final_logit_softcapping
        if head is not None:
            if cap is not None:
                raise InputError("Policy: fused losses and distillation need logits without a cap; leave them out")
            return head(hidden, weight)
        logps, entropy = linear_logps_and_entropy(hidden, weight, input_ids, temperature, softcap=cap)
        values = None if self.value_head is None else self.value_head(hidden, attention_mask)
        return TokenOutputs(torch.where(attention_mask, logps, 0), torch.where(attention_mask, entropy, 0), values)

    @torch.no_grad()
    def read_values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The values alone, [B, T], without gradient and without the cost of the language-model head."""
        return self.value_head(self.transformer.model(input_ids, attention_mask), attention_mask)


def copy_of(policy: Policy) -> Policy:
    """The same weights, adapters included, in new storage, frozen, without value head: a reference policy."""
    reference = Policy(copy.deepcopy(policy.transformer)).requires_grad_(False).eval()
    reference.zero_grad(set_to_none=True)
    return reference


def check_policy(who: str, policy: Policy, reference: Policy | None = None) -> None:
    """Raise InputError if the policy has a value head, or if the reference shares weights that the policy trains.

    For trainers whose loss reads no values: a value head would stay untrained. `who` names the trainer in the error.
    """
    if policy.value_head is not None:
        raise InputError(f"{who}: needed a policy without value head, because no loss here would train it")
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


@torch.no_grad()
def move_towards(reference: Policy, policy: Policy, share: float) -> None:
    """reference <- share * policy + (1 - share) * reference, weight by weight, in place.

    Gorbatovski et al. 2024, arXiv:2404.09656, Eq. 3 and 4 (TR-DPO); share 1 copies.
    Raises: InputError if the reference has other weights, as the base without the policy's adapter has.
    """
    theirs, ours = (dict(model.transformer.named_parameters()) for model in (reference, policy))
    if theirs.keys() != ours.keys():
        raise InputError("move_towards: the reference must have all weights of the policy; use copy_of(policy)")
    for name, weight in theirs.items():
        weight.lerp_(ours[name].to(weight.dtype), share)


class ValueHead(nn.Linear):
    """Hidden state before token t -> the value of column t. Starts at 0, so early returns are not fought over."""

    def __init__(self, transformer: Transformer) -> None:
        like = {"device": transformer.device, "dtype": trainable(transformer.dtype)}
        super().__init__(transformer.config.hidden_size, 1, **like)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        values = shift_right(linear_at_full_precision(self, hidden).squeeze(-1))
        return torch.where(attention_mask, values, 0)


class ValueModel(nn.Module):
    """A critic with a trunk of its own: ids -> values [B, T]."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = transformer.model
        self.value_head = ValueHead(transformer)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.value_head(self.model(input_ids, attention_mask), attention_mask)


class RewardModel(nn.Module):
    """A trunk and one number, read at the last real token: ids [B, T], mask [B, T] bool -> scores [B]."""

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
        hidden = self.model(input_ids, attention_mask)
        last = attention_mask.sum(-1) - 1
        at_last = hidden[torch.arange(len(last), device=last.device), last]
        return linear_at_full_precision(self.score, at_last).squeeze(-1)


class ProcessRewardModel(nn.Module):
    """A trunk and one number for each token, read at the token itself, unshifted: ids [B, T] -> scores [B, T]."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = transformer.model
        like = {"device": transformer.device, "dtype": trainable(transformer.dtype)}
        self.score = nn.Linear(transformer.config.hidden_size, 1, **like)
        nn.init.normal_(self.score.weight, std=(transformer.config.hidden_size + 1) ** -0.5)
        nn.init.zeros_(self.score.bias)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores = linear_at_full_precision(self.score, self.model(input_ids, attention_mask)).squeeze(-1)
        return torch.where(attention_mask, scores, 0)


def trainable(dtype: torch.dtype) -> torch.dtype:
    """fp32 for a new head on a trunk in half precision: small steps must not be rounded away."""
    return torch.promote_types(dtype, torch.float32)


def linear_at_full_precision(layer: nn.Linear, x: Tensor) -> Tensor:
    """A head of one number in the weights' own type: bf16 autocast would leave scores two digits."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def disable_dropout(model: nn.Module) -> None:
    """Turn dropout off permanently: with it, log-probs of before and after an update would differ by noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
